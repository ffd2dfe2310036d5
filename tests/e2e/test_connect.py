"""Several programs that share one server: `run --name`, `mount --name`, `run --connect`."""

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

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
SOMEBODY = [sys.executable, str(Path(__file__).with_name("unprivileged.py"))]
IOMMUFS = [sys.executable, "-m", "iommufs.cli"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
LONG = 30

PRELUDE = """
import ctypes, errno, fcntl, os, select, signal, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def bind(path="/dev/vfio/devices/vfio0"):
    device, iommu = os.open(path, os.O_RDWR), os.open("/dev/iommu", os.O_RDWR)
    fcntl.ioctl(device, 0x3b76, bytearray(struct.pack("IIiI", 16, 0, iommu, 0)))
    return device, iommu
def fault_queue():
    memory = bytearray(struct.pack("IIII", 16, 0, 0, 0))
    fcntl.ioctl(os.open("/dev/iommu", os.O_RDWR), 0x3b8e, memory)
    return os.readlink(f"/proc/self/fd/{struct.unpack('IIII', memory)[3]}") != ""
"""


class Sharing:
    """A named server, and runs that connect to it; `before` is who they are."""

    def __init__(self, before):
        self.before = before
        self.name = f"test-{uuid.uuid4()}"
        self._started = []

    def start(self, *arguments):
        child = subprocess.Popen(
            [*self.before, *IOMMUFS, *arguments],
            cwd=ROOT, env=ENVIRONMENT, stdin=-1, stdout=-1, stderr=-1, text=True,
        )  # fmt: skip
        self._started.append(child)
        return child

    def host(self, program="input()"):
        """A program in the named run, and what its first line says: its server."""
        code = f"{PRELUDE}\nprint(os.getppid(), flush=True)\n{textwrap.dedent(program)}"
        child = self.start("run", "--name", self.name, "--", sys.executable, "-c", code)
        return child, int(child.stdout.readline())

    def start_guest(self, program):
        code = PRELUDE + textwrap.dedent(program)
        return self.start("run", "--connect", self.name, "--", sys.executable, "-c", code)

    def guest(self, program):
        child = self.start_guest(program)
        out, err = child.communicate(timeout=LONG)
        return child.returncode, out, err

    def end(self):
        for child in self._started:
            if child.poll() is None:
                child.kill()
            with contextlib.suppress(ValueError):
                child.communicate(timeout=LONG)


@pytest.fixture(params=["root", "user"])
def sharing(request):
    made = Sharing([] if request.param == "root" else [*SOMEBODY, "user"])
    yield made
    made.end()


def finish(child):
    out, err = child.communicate("\n", timeout=LONG)
    assert err == ""
    return child.returncode, out


def test_what_one_program_holds_the_other_finds_taken(sharing):
    host, _ = sharing.host("held = bind(); print('bound', flush=True); input(); sys.exit(4)")
    assert host.stdout.readline() == "bound\n"
    assert sharing.guest("print(attempt(bind)); sys.exit(5)") == (5, "EINVAL\n", "")
    assert finish(host) == (4, "")


def test_descriptors_are_returned_to_guests(sharing):
    host, _ = sharing.host()
    for _ in range(2):
        assert sharing.guest("print(fault_queue())") == (0, "True\n", "")
    assert finish(host) == (0, "")


def test_the_server_ends_with_the_last_program(sharing):
    host, server = sharing.host()
    server = os.pidfd_open(server)
    guest = sharing.start_guest("print('up', flush=True); input(); print(attempt(bind))")
    assert guest.stdout.readline() == "up\n"
    assert finish(host) == (0, "")
    assert not select.select([server], [], [], 0)[0]
    assert finish(guest) == (0, "done\n")
    assert select.select([server], [], [], LONG)[0]
    status, _, err = sharing.guest("")
    assert status == 125
    assert f"no server of the name {sharing.name}" in err


def test_a_killed_guest_lets_go_of_what_it_held(sharing):
    host, _ = sharing.host()
    guest = sharing.start_guest("held = bind(); print('bound', flush=True); input()")
    assert guest.stdout.readline() == "bound\n"
    guest.kill()
    guest.communicate()
    program = """
        while (found := attempt(bind)) == "EINVAL":
            pass
        print(found)
    """
    assert sharing.guest(program) == (0, "done\n", "")
    assert finish(host) == (0, "")


def test_guests_survive_the_servers_death(sharing):
    host, server = sharing.host()
    guest = sharing.start_guest("""
        import mmap
        held = bind()
        print("bound", flush=True)
        input()
        print(attempt(os.pread, held[0], 4, 0) in ("ENOTCONN", "ECONNABORTED", "EIO"))
        memfd = os.memfd_create("other")
        os.ftruncate(memfd, 4096)
        print(attempt(mmap.mmap, memfd, 4096), os.fstat(memfd).st_size)
    """)
    assert guest.stdout.readline() == "bound\n"
    pidfd = os.pidfd_open(server)
    os.kill(server, signal.SIGKILL)
    assert select.select([pidfd], [], [], LONG)[0]
    assert finish(guest) == (0, "True\ndone 4096\n")
    host.communicate("\n", timeout=LONG)


def test_a_name_is_taken_once(sharing):
    host, _ = sharing.host()
    second = sharing.start("run", "--name", sharing.name, "--", "true")
    assert second.communicate(timeout=LONG) == (
        "",
        f"iommufs: there is a server of the name {sharing.name} already\n",
    )
    assert second.returncode == 125
    assert finish(host) == (0, "")


def test_guests_share_the_server_of_a_mount(tmp_path):
    sharing = Sharing([])
    mount = sharing.start("mount", "--name", sharing.name, str(tmp_path))
    try:
        assert mount.stdout.readline() == f"iommufs: serving on {tmp_path}\n"
        assert sharing.guest("print(fault_queue(), attempt(bind))") == (0, "True done\n", "")
        device = os.open(tmp_path / "dev/vfio/devices/vfio0", os.O_RDWR)
        os.close(device)
        mount.terminate()
        assert mount.communicate(timeout=LONG) == ("", "")
        assert mount.returncode == 0
    finally:
        sharing.end()


@pytest.mark.root
def test_another_user_is_not_let_in():
    sharing = Sharing([])
    try:
        host, _ = sharing.host()
        guest = Sharing([*SOMEBODY, "user"])
        guest.name = sharing.name
        program = f"""
import os, socket
address = b"\\0iommufs/0/{sharing.name}"
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(address)
print(socket.recv_fds(connection, 64, 2)[:2])
"""
        result = subprocess.run(
            [*SOMEBODY, "user", sys.executable, "-c", program],
            cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=LONG,
        )  # fmt: skip
        assert (result.stdout, result.stderr) == ("(b'', [])\n", "")
        status, _, err = guest.guest("")
        assert status == 125
        assert "no server of the name" in err
        assert finish(host) == (0, "")
    finally:
        sharing.end()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "--connect", "x", "--name", "y", "true"], "--connect goes without"),
        (["run", "--connect", "x", "--device", "edu", "true"], "--connect goes without"),
        (["run", "--connect", "../x", "true"], "'../x' is no name"),
        (["run", "--name", "", "true"], "'' is no name"),
    ],
)
def test_bad_use_is_one_line(arguments, text):
    result = subprocess.run(
        [*IOMMUFS, *arguments],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=LONG,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (125, "")
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
