"""What holds for every test: marks for those that need rights, no log line that nobody expected."""

import functools
import gc
import logging
import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import iommufs.server  # noqa: F401  before any test imports pyfuse3: see there

CAPABILITIES = {14: "CAP_IPC_LOCK", 19: "CAP_SYS_PTRACE", 21: "CAP_SYS_ADMIN"}
LOUD = {"warning", "error", "critical"}


def pytest_configure(config):
    config.addinivalue_line("markers", "mount: needs /dev/fuse and the right to mount")
    config.addinivalue_line("markers", "root: needs root with its usual capabilities")
    config.addinivalue_line("markers", "logs(pattern): a warning or error that matches is expected")


@functools.cache
def why_no_mount() -> str | None:
    """What keeps this machine from mounting; None: nothing."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    return why_not_root() or _why_mount_is_refused()


def _why_mount_is_refused() -> str | None:
    trial = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    if subprocess.run(trial, capture_output=True).returncode:
        return "mount(2) is refused"
    return None


@functools.cache
def why_not_root() -> str | None:
    """What root has that this process has not; None: nothing."""
    if os.geteuid() != 0:
        return "no rights: run as root"
    effective = int(re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[1], 16)
    missing = [name for bit, name in CAPABILITIES.items() if not effective >> bit & 1]
    return f"no rights: {', '.join(missing)} missing" if missing else None


def pytest_collection_modifyitems(items):
    for item in items:
        for mark, why_not in (("mount", why_no_mount), ("root", why_not_root)):
            if item.get_closest_marker(mark) and why_not():
                item.add_marker(pytest.mark.skip(reason=why_not()))


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.items():
        terminalreporter.write_line(f"left out: {count} of the tests ({reason})")


class LogLines(logging.Handler):
    """What iommufs logs: the facts of each line, with its `event` and `log_level`."""

    def __init__(self):
        super().__init__()
        self.entries = []

    def emit(self, record):
        told = {"event": record.getMessage(), "log_level": record.levelname.lower()}
        self.entries.append({**record.facts, **told})


@pytest.fixture(autouse=True)
def log_lines(request, caplog):
    """What iommufs logged in this test; a warning that no `logs` mark announces fails it."""
    capture, ours = LogLines(), logging.getLogger("iommufs")
    ours.addHandler(capture)
    ours.setLevel(logging.DEBUG)
    yield capture.entries
    ours.removeHandler(capture)
    loud = [str(entry) for entry in capture.entries if entry["log_level"] in LOUD]
    for phase in ("setup", "call"):
        others = [r for r in caplog.get_records(phase) if not hasattr(r, "facts")]
        loud += [r.getMessage() for r in others if r.levelno >= logging.WARNING]
    patterns = [mark.args[0] for mark in request.node.iter_markers("logs")]
    unexpected = [line for line in loud if not any(re.search(p, line) for p in patterns)]
    assert not unexpected, f"unexpected log lines: {unexpected}"
    silent = [p for p in patterns if not any(re.search(p, line) for line in loud)]
    assert not silent, f"announced, but not logged: {silent}"


@pytest.fixture(scope="module", autouse=True)
def no_heap_of_descriptors():
    """Machines of tests own files and go with the next collection, which may be far off."""
    yield
    if len(os.listdir("/proc/self/fd")) > 200:  # select() knows only 1024
        gc.collect()
