"""Programs of others, unmodified, under `iommufs run`: `make test-clients`, not `make test`.

Debian's come into build/clients by set-up; those that the user has to bring are named on the
command line. What is missing is the reason of a skip.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.qemu import Qemu

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, "-m", "iommufs.cli", "run"]
NOTHING_TO_GET_IT_FROM = 3  # an exit status of set-up
LONG = 120  # seconds after which something hangs
LOADER = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"


def pytest_addoption(parser):
    parser.addoption("--libvfn", metavar="DIR", help="the sources of libvfn, or what is built")
    parser.addoption("--spdk", metavar="DIR", help="where SPDK is built, with its tests")


class Debian:
    """The directory that set-up filled."""

    def __init__(self, root):
        self.root = root

    def command(self, program):
        """What runs a program of it, with its own libraries."""
        libraries = self.root / "usr/lib/x86_64-linux-gnu"
        return [str(self.root / LOADER), "--library-path", str(libraries), str(self.root / program)]

    @property
    def kernel(self):
        (kernel,) = (self.root / "boot").glob("vmlinuz-*")
        return kernel


@pytest.fixture(scope="session")
def debian():
    directory = ROOT / "build" / "clients"
    script = Path(__file__).with_name("set-up")
    result = subprocess.run([script, directory], stdout=subprocess.PIPE, text=True)
    if result.returncode == NOTHING_TO_GET_IT_FROM:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, "set-up failed, for the reason above"
    return Debian(directory / "root")


@pytest.fixture
def run(tmp_path):
    """Runs a program under `iommufs run`; options are those of the run."""

    def run(*command, options=(), **keywords):
        keywords = {"capture_output": True, "text": True, "timeout": LONG, **keywords}
        keywords.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(
            [*RUN, *options, "--", *map(str, command)],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, **keywords,
        )  # fmt: skip

    return run


@pytest.fixture
def start(tmp_path):
    """Starts a program under `iommufs run`, and ends what a test leaves running."""
    started = []

    def start(*command, options=(), **keywords):
        process = subprocess.Popen(
            [*RUN, *options, "--", *map(str, command)],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, **keywords,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def start_qemu(debian, tmp_path):
    """Starts machines under `iommufs run`, and ends those that a test leaves running."""
    started = []

    def start(*devices, options=(), arguments=(), **keywords):
        command = [
            *RUN, *options, "--", *debian.command("usr/bin/qemu-system-x86_64"),
            "-L", str(debian.root / "usr/share/qemu"), "-L", str(debian.root / "usr/share/seabios"),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        qemu = Qemu(command, devices, list(arguments), tmp_path, environment, **keywords)
        started.append(qemu)
        qemu.wait_for_monitor()
        return qemu

    yield start
    for qemu in started:
        qemu.kill()
