"""Who is not root, and who is root of a container: the same devices, BARs mapped all the same."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.root]

ROOT = Path(__file__).parents[2]
LONG = 60
SOMEBODY = [sys.executable, str(Path(__file__).with_name("unprivileged.py"))]
IOMMUFS = [sys.executable, "-m", "iommufs.cli"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def run(kind, *command):
    result = subprocess.run(
        [*SOMEBODY, kind, *command],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=LONG,
    )  # fmt: skip
    return result.returncode, result.stdout, result.stderr


@pytest.fixture(params=["user", "container"])
def python(request):
    """Runs a Python program under `iommufs run`."""

    def python(program, *arguments):
        command = [*IOMMUFS, "run", "--", sys.executable, "-c", program, *arguments]
        return run(request.param, *command)

    return python


@pytest.mark.parametrize("kind", ["user", "container"])
def test_a_whole_driver_runs(kind):
    program = ROOT / "examples" / "edu_driver.py"
    status, out, err = run(kind, *IOMMUFS, "run", "--", sys.executable, str(program))
    assert status == 0, err
    assert out.splitlines()[-1] == "done      all as it should be"
    assert all("DMA refused" in line for line in err.splitlines())


def test_the_program_is_who_it_was_and_has_no_more_rights(python):
    program = """
import os
print(os.getuid(), os.access("/etc/shadow", os.R_OK), os.stat("/dev/vfio/devices/vfio0").st_uid)
"""
    status, out, _ = python(program)
    assert status == 0
    assert out in ("1 False 1\n", "0 True 0\n")


def test_terminals_can_be_made(python):
    program = """
import os
master, slave = os.openpty()
print(os.ttyname(slave).startswith("/dev/"), os.path.exists(os.ttyname(slave)))
os.write(master, b"typed\\n")
print(os.read(slave, 10))
"""
    assert python(program) == (0, "True True\nb'typed\\n'\n", "")


def test_without_user_namespaces_one_line_says_what_would_allow_them():
    script = """
        echo 0 > /proc/sys/user/max_user_namespaces
        exec setpriv --bounding-set=-sys_admin -- "$@"
    """
    status, out, err = run("namespace", "sh", "-ec", script, "sh", *IOMMUFS, "run", "true")
    assert (status, out) == (125, "")
    assert err == (
        "iommufs: the mount namespace: not root, and no user namespace here: "
        "sysctl user.max_user_namespaces=10000\n"
    )


DIRTY = """
import errno, fcntl, mmap, os, select, signal, struct
device, iommu = (os.open(f"/dev/{name}", os.O_RDWR) for name in ("vfio/devices/vfio0", "iommu"))
fcntl.ioctl(device, 0x3b76, bytearray(struct.pack("IIiI", 16, 0, iommu, 0)))
bar = mmap.mmap(device, 1 << 20)
assert bar[0:4] == bytes.fromhex("ed000001")
for page in range(4096, 1 << 20, 4096):
    bar[page:page + 4] = b"mine"
"""


def test_a_killed_server_that_has_changed_pages_ends_at_once(python):
    """Its own mapping goes before its descriptors: nobody else would take the pages."""
    program = f"""{DIRTY}
server = os.pidfd_open(os.getppid())
signal.pidfd_send_signal(server, 9)
assert select.select([server], [], [], 30)[0], "it hangs"
try:
    os.pread(device, 4, 0)
except OSError as error:
    print(error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO))
"""
    assert python(program) == (0, "True\n", "")


def test_a_killed_keeper_ends_the_server_and_other_files_go_on(python):
    program = f"""{DIRTY}
server = os.getppid()
pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
def is_keeper(pid):
    try:
        fields = open(f"/proc/{{pid}}/stat").read()
    except OSError:
        return False
    return "(iommufs-keeper)" in fields and fields.rpartition(")")[2].split()[1] == str(server)
keeper, = filter(is_keeper, pids)
ended = os.pidfd_open(server)
os.kill(keeper, 9)
assert select.select([ended], [], [], 30)[0], "it hangs"
memfd = os.memfd_create("other")
os.ftruncate(memfd, 4096)
print(os.fstat(memfd).st_size, len(mmap.mmap(memfd, 4096)))
"""
    status, out, err = python(program)
    assert (status, out) == (0, "4096 4096\n")
    assert err == "iommufs: error: the tree is gone: calls on its files fail from now on\n"


def test_a_killed_client_that_has_changed_pages_ends_at_once(python):
    assert python(f"{DIRTY}os.kill(os.getpid(), 9)") == (128 + signal.SIGKILL, "", "")


def test_pages_outlive_the_clients_mapping_and_are_read_as_memory(python):
    program = """
import fcntl, mmap, os, struct
device, iommu = (os.open(f"/dev/{name}", os.O_RDWR) for name in ("vfio/devices/vfio1", "iommu"))
fcntl.ioctl(device, 0x3b76, bytearray(struct.pack("IIiI", 16, 0, iommu, 0)))
info = bytearray(struct.pack("IIIIQQ", 32, 0, 7, 0, 0, 0))
fcntl.ioctl(device, 0x3b6c, info)
config = struct.unpack("IIIIQQ", info)[5]
os.pwrite(device, b"\\x06", config + 4)
bar = mmap.mmap(device, 0x4000)
bar[0x1000:0x1004] = b"mine"
bar.close()
print(os.pread(device, 4, 0x1000), os.pwrite(device, b"more", 0x1004), os.pread(device, 8, 0x1000))
bar = mmap.mmap(device, 0x4000)
print(bar[0x1000:0x1008], os.pread(device, 0x4000, 0)[0x1000:0x1008])
"""
    expected = "b'mine' 4 b'minemore'\nb'minemore' b'minemore'\n"
    assert python(program) == (0, expected, "")


def test_contracts_hold_through_the_page_cache(tmp_path):
    tests = [f"tests/contract/test_{name}.py" for name in ("device_mounted", "device_mmap")]
    base = tmp_path.parent / f"{tmp_path.name}-namespace"
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp=/tmp/{base.name}"]
    status, out, err = run("namespace", sys.executable, "-m", "pytest", *options, *tests)
    assert status == 0, out + err
    assert "left out" not in out
    shutil.rmtree(f"/tmp/{base.name}", ignore_errors=True)


@pytest.mark.parametrize("program", ["groups/ask.py", "unasked/ask.py"])
def test_a_user_gets_the_answers_that_root_gets(program):
    """Which are those of Linux (test_groups.py, test_unasked.py)."""
    asks = str(Path(__file__).parent / program)
    command = [*IOMMUFS, "run", "--", sys.executable, asks]
    root = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=LONG
    )
    assert len(root.stdout.splitlines()) > 100
    assert run("user", *command) == (0, root.stdout, "")


# ---- mount ----

MOUNT = """
import fcntl, mmap, os, signal, struct, subprocess, sys
tree = sys.argv[1]
server = subprocess.Popen([sys.executable, "-m", "iommufs.cli", "mount", tree], stdout=-1)
server.stdout.readline()
device, iommu = (os.open(f"{tree}/dev/{n}", os.O_RDWR) for n in ("vfio/devices/vfio0", "iommu"))
fcntl.ioctl(device, 0x3b76, bytearray(struct.pack("IIiI", 16, 0, iommu, 0)))
print(mmap.mmap(device, 1 << 20)[0:4].hex())
server.send_signal(signal.SIGTERM)
print(server.wait(), os.listdir(tree))
"""


needs_fusermount3 = pytest.mark.skipif(
    shutil.which("fusermount3") is None, reason="fusermount3 is missing"
)


@pytest.fixture
def place():
    """A directory of the user's."""
    path = tempfile.mkdtemp(dir="/tmp")
    os.chown(path, 1, 1)
    yield path
    shutil.rmtree(path)


@needs_fusermount3
@pytest.mark.skipif(
    not os.path.exists("/etc/mtab"), reason="no /etc/mtab, in which fusermount3 looks for mounts"
)
def test_a_user_mounts_with_fusermount3(place):
    assert run("user", sys.executable, "-c", MOUNT, place) == (0, "ed000001\n0 []\n", "")


LEAVE = """
import os, signal, subprocess, sys
tree = sys.argv[1]
server = subprocess.Popen([sys.executable, "-m", "iommufs.cli", "mount", tree], stdout=-1)
server.stdout.readline()
server.send_signal(signal.SIGTERM)
print(server.wait())
"""


@needs_fusermount3
def test_a_mount_that_fusermount3_leaves_is_named(place):
    """As it does where there is no /etc/mtab."""
    tree = f"{place}/tree"
    os.mkdir(tree)
    os.chown(tree, 1, 1)
    refuses = Path(place, "fusermount3")
    refuses.write_text(f"""#!/bin/sh
        if [ $1 = -u ]; then echo "fusermount3: not today" >&2; exit 1; fi
        exec {shutil.which("fusermount3")} "$@"
    """)
    refuses.chmod(0o755)
    command = ["env", f"PATH={place}:{os.environ['PATH']}", sys.executable, "-c", LEAVE, tree]
    line = f"the mount is left: umount it as root (path={tree}, reason=not today)"
    assert run("user", *command) == (0, "0\n", f"iommufs: error: {line}\n")


def test_a_user_cannot_share_a_mount_and_is_told_so():
    status, out, err = run("user", *IOMMUFS, "mount", "--name", "mine", "/tmp")
    assert (status, out) == (1, "")
    assert err == "iommufs: --name: only root can share a mount; `run --name` needs no root\n"


def test_nodes_look_like_devices(python):
    program = """
import os, stat
path = "/dev/vfio/devices/vfio0"
number = open("/sys/class/vfio-dev/vfio0/dev").read().strip()
fd = os.open(path, os.O_RDWR)
for look in (os.stat(path), os.lstat(path), os.fstat(fd)):
    numbers = f"{os.major(look.st_rdev)}:{os.minor(look.st_rdev)}"
    print(stat.filemode(look.st_mode), numbers == number, look.st_uid == os.getuid())
try:
    os.lseek(fd, 0, os.SEEK_END)
except OSError as error:
    print(error.strerror)
"""
    status, out, err = python(program)
    assert (status, err) == (0, "")
    assert out.splitlines() == [*["crw------- True True"] * 3, "Illegal seek"]
