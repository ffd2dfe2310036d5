"""The example drivers, unchanged, under `iommufs run`: they see what they see on real Linux.

data/*.txt is what they printed in the reference guest, for the edu on its root bus and its 82576.
"""

import random
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
EXPECTED = (Path(__file__).parent / "data" / "edu_driver.txt").read_text()
BEHIND_THE_BRIDGE = "0000:04:01.0"
LONG = 60  # seconds after which something hangs

IGB_EXPECTED = (Path(__file__).parent / "data" / "igb_loopback.txt").read_text()
EDU_ONLY = """
[[function]]
bdf = "0000:00:01.0"
model = "edu"
"""


def compiled(directory, name):
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", f"-I{ROOT / 'uapi'}"]
    source = ROOT / "examples" / f"{name}.c"
    subprocess.run(["cc", *flags, "-o", directory / name, source], check=True)
    return [str(directory / name)]


@pytest.fixture(scope="session")
def c_driver(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("examples"), "edu_driver")


@pytest.fixture(params=["c", "python"])
def driver(request):
    if request.param == "python":
        return [sys.executable, str(ROOT / "examples" / "edu_driver.py")]
    return request.getfixturevalue("c_driver")


@pytest.fixture
def run():
    def run(*command, options=()):
        return subprocess.run(
            [sys.executable, "-m", "iommufs.cli", "run", *options, "--", *command],
            cwd=ROOT, capture_output=True, text=True, timeout=LONG, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run


def test_driver_prints_what_it_prints_on_linux(run, driver):
    result = run(*driver)
    assert result.stdout == EXPECTED, result.stderr
    assert result.returncode == 0
    refused = [line for line in result.stderr.splitlines() if "DMA refused" in line]
    assert [("iova=0xfffe000" in line, "iova=0x2000" in line) for line in refused] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    assert result.stderr.splitlines() == refused


def test_driver_works_on_a_device_behind_a_bridge(run, driver):
    result = run(*driver, BEHIND_THE_BRIDGE)
    assert result.returncode == 0, result.stderr
    first = EXPECTED.splitlines()[0]
    found = first.replace("0000:00:06.0", BEHIND_THE_BRIDGE)
    found = found.replace("group 5", "group 11").replace("vfio0", "vfio4")
    assert result.stdout.splitlines() == [found, *EXPECTED.splitlines()[1:]]


def test_driver_works_on_a_machine_described_in_three_lines(run, driver, tmp_path):
    config = tmp_path / "machine.toml"
    config.write_text(EDU_ONLY)
    result = run(*driver, options=["--config", str(config)])
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("found     0000:00:01.0 is 1234:11e8, IOMMU group 0, ")
    assert result.stdout.endswith("done      all as it should be\n")


def test_driver_says_in_one_line_that_there_is_no_device(run, driver):
    result = run(*driver, "0000:00:1f.0")
    assert (result.returncode, result.stdout) == (1, "")
    name = Path(driver[-1]).name
    assert result.stderr == f"{name}: no PCI device 1234:11e8 at 0000:00:1f.0\n"


def test_two_drivers_at_once_have_a_device_each(run, c_driver):
    both = f"{c_driver[0]} >/dev/null & {c_driver[0]} {BEHIND_THE_BRIDGE} >/dev/null && wait $!"
    result = run("sh", "-c", f"{both}; a=$?; exit $a")
    assert result.returncode == 0, result.stderr


def test_a_second_driver_of_a_device_in_use_is_refused(run, c_driver):
    program = """
import fcntl, os, struct, subprocess, sys
device = os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
iommufd = os.open("/dev/iommu", os.O_RDWR)
fcntl.ioctl(device, 0x3B76, bytearray(struct.pack("IIiI", 16, 0, iommufd, 0)))
sys.exit(subprocess.run(sys.argv[1:]).returncode)
"""
    result = run(sys.executable, "-c", program, *c_driver)
    assert result.returncode == 1
    assert result.stderr == "edu_driver: cannot bind 0000:00:06.0: Invalid argument\n"


def test_igb_sends_to_itself_as_on_linux(run, tmp_path):
    driver = compiled(tmp_path, "igb_loopback")
    result = run(*driver)
    assert (result.stdout, result.stderr, result.returncode) == (IGB_EXPECTED, "", 0)


@pytest.fixture(scope="session")
def nvme_driver(tmp_path_factory):
    program = tmp_path_factory.mktemp("examples") / "nvme_driver"
    source = ROOT / "examples" / "nvme_driver.c"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", f"-I{ROOT / 'uapi'}"]
    subprocess.run(["cc", *flags, "-o", program, source], check=True)
    return str(program)


def said_by_the_winner(result):
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("no acknowledged byte was lost\n")
    return result.stdout


def test_an_nvme_driver_that_is_reset_and_killed_loses_no_byte(run, nvme_driver):
    seed = str(random.randrange(1 << 32))
    result = run(nvme_driver, "-n", "30000", "-s", seed)
    assert said_by_the_winner(result).startswith(f"seed {seed}\n")


def test_what_an_nvme_driver_wrote_to_a_file_is_there_in_the_next_run(run, nvme_driver, tmp_path):
    disk = tmp_path / "disk"
    device = f"nvme,size=4M,lba_size=4096,path={disk},reset_methods=['flr']"
    result = run(nvme_driver, "-d", "0000:00:01.0", "-n", "5000", options=["--device", device])
    assert "1024 blocks of 4096 bytes" in said_by_the_winner(result)
    written = disk.read_bytes()
    assert len(written) == 4 << 20
    assert 0 not in {int.from_bytes(written[at : at + 8]) for at in range(0, len(written), 4096)}
