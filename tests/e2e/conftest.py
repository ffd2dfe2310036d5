"""Starting runs, and what has to be gone when a test ends: processes and mounts."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import pytest

SMALL_RUN = [sys.executable, str(Path(__file__).with_name("small_run.py"))]
ROOT = Path(__file__).parents[2]
LONG = 30  # seconds after which something hangs


class Runs:
    """Starts runs, knows the processes of all of them by a variable in their environment."""

    def __init__(self):
        self.token = f"IOMMUFS_TEST={uuid.uuid4()}"
        name, value = self.token.split("=")
        self.small_run = SMALL_RUN
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), name: value}

    def start(self, *command, **options):
        return subprocess.Popen([*SMALL_RUN, *command], env=self.environment, **options)

    def run(self, *command, **options):
        options = {"capture_output": True, "text": True, "timeout": LONG, **options}
        return subprocess.run([*SMALL_RUN, *command], env=self.environment, **options)

    def python(self, program, *arguments, **options):
        return self.run(sys.executable, "-c", textwrap.dedent(program), *arguments, **options)

    @staticmethod
    def wait_for_end(pidfd):
        """Wait until a process has ended; closes the descriptor."""
        with open(pidfd) as file:
            assert select.select([file], [], [], LONG)[0], "a process of the run does not end"

    def processes(self):
        """The pids of all that was started, not those of zombies."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                try:
                    environment = Path(f"/proc/{entry}/environ").read_bytes()
                except OSError:
                    continue
                if self.token.encode() in environment.split(b"\0"):
                    found.append(int(entry))
        return found

    def kill(self):
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def our_mounts():
    """The mounts over /dev, /sys and the hub in our own namespace: there must be none, ever."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    places = ("/dev", "/sys", "/proc")
    return [line for line in lines if "iommufs" in line and line.split()[4].startswith(places)]


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_the_foreground():
    """A shell without job control lets what it starts with & ignore two, nohup a third."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def runs():
    made = Runs()
    yield made
    try:
        for pid in made.processes():
            made.wait_for_end(os.pidfd_open(pid))
    finally:
        made.kill()
    assert our_mounts() == []
