"""SPDK, a toolkit of NVMe drivers: its examples and its tests of controllers, on ours.

Debian does not have it: `make test-clients SPDK=DIR` names a directory in which it is built, with
its tests. Its memory is in huge pages: `sysctl vm.nr_hugepages=256`, and a hugetlbfs somewhere.
"""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

BDF = "0000:00:01.0"
NVME = 'nvme,size=1G,reset_methods=["flr"]'
ENOUGH = 128  # pages of 2 MiB
PLACE = ["-r", f"trtype:PCIe traddr:{BDF}"]


@pytest.fixture(scope="session")
def built(pytestconfig):
    if not pytestconfig.getoption("--spdk"):
        pytest.skip("no SPDK: make test-clients SPDK=DIR")
    directory = Path(pytestconfig.getoption("--spdk")).resolve()
    if not (directory / "build" / "examples" / "hello_world").exists():
        pytest.fail(f"{directory}: SPDK is not built there")
    mounts, memory = Path("/proc/mounts").read_text(), Path("/proc/meminfo").read_text()
    free = re.search(r"HugePages_Free: +(\d+)", memory)
    if " hugetlbfs " not in mounts or free is None or int(free[1]) < ENOUGH:
        pytest.skip(f"no hugetlbfs, or less than {ENOUGH} huge pages that are free")
    return directory


@pytest.mark.parametrize(
    ("program", "arguments", "expected"),
    [
        ("build/bin/spdk_nvme_identify", PLACE, "Serial Number:                         iommufs-1"),
        (
            "build/bin/spdk_nvme_perf",
            [*PLACE, *["-q", "32", "-o", "4096", "-w", "randrw", "-M", "50", "-t", "1"]],
            "Total",
        ),
        ("build/examples/hello_world", [], "Hello world!"),
        (
            "build/examples/abort",
            [*PLACE, *["-q", "16", "-o", "4096", "-t", "1"]],
            "abort submitted",
        ),
        ("build/examples/arbitration", ["-c", "1", "-t", "1"], "IO/s"),
        ("test/nvme/aer/aer", ["-T"], "aer_cb for log page 2"),
        ("test/nvme/doorbell_aers/doorbell_aers", PLACE, "Success: test_write_invalid_db\n"),
        ("test/nvme/err_injection/err_injection", [], "read successfully as expected"),
        ("test/nvme/overhead/overhead", ["-o", "4096", "-t", "1"], "submit (in ns)"),
        ("test/nvme/sgl/sgl", [], "build_io_request_11 test passed"),
        ("test/nvme/startup/startup", ["-t", "60000000"], "Time used"),
    ],
)
def test_program(built, run, program, arguments, expected):
    result = run(built / program, *arguments, options=["--device", NVME])
    assert result.returncode == 0, result.stdout + result.stderr
    assert expected in result.stdout
    assert not any(word in result.stdout for word in ("Failure", "failed:  ", "test failed"))
    assert "iommufs" not in result.stderr


def test_compliance(built, run):
    """It has data written to where nothing is mapped, which is logged."""
    result = run(built / "test/nvme/compliance/nvme_compliance", *PLACE, options=["--device", NVME])
    assert result.returncode == 0, result.stdout
    assert "FAILED" not in result.stdout
