"""mmap() and reading nothing, under `iommufs run`: as on Linux on our files, untouched on others.

unasked/linux_7.3.txt is what unasked/ask.py printed in the reference guest.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
ASK = Path(__file__).parent / "unasked" / "ask.py"
EXPECTED = (ASK.parent / "linux_7.3.txt").read_text().splitlines()
LONG = 60  # seconds after which something hangs


def run(*program):
    result = subprocess.run(
        [sys.executable, "-m", "iommufs.cli", "run", "--", sys.executable, *program],
        cwd=ROOT, capture_output=True, text=True, timeout=LONG, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_answers_are_those_of_linux():
    assert run(ASK) == EXPECTED


CLIENT = """
import errno, mmap, os, select, signal, tempfile

def attempt(fd, length=4096, **options):
    try:
        mmap.mmap(fd, length, **options).close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "mapped"

def read(path):
    "As open() does, which asks for a size."
    fd = os.open(path, os.O_RDONLY)
    text = os.read(fd, 1000)
    os.close(fd)
    return text

def wait_for_call(process, *numbers):
    "Wait until a process is in a system call."
    names = [b"%d" % number for number in numbers]
    while read(f"/proc/{process}/syscall").split()[0] not in names:
        pass

def stop(process):
    "Until all of its threads have come to a stop."
    threads = os.listdir(f"/proc/{process}/task")
    os.kill(process, signal.SIGSTOP)
    for thread in threads:
        while b") T " not in read(f"/proc/{process}/task/{thread}/stat"):
            pass

memfd = os.memfd_create("other")
os.ftruncate(memfd, 4096)
"""


@pytest.fixture
def client(runs):
    """In the small tree: nothing there has a say about mappings, the calls are noticed alike."""

    def run(program):
        result = runs.python(CLIENT + program)
        assert result.stderr == ""
        assert result.returncode == 0
        return result.stdout.splitlines()

    return run


def test_shared_mappings_of_other_files_are_what_they_are(client):
    assert client("""
file = tempfile.TemporaryFile()
file.truncate(8192)
for fd in (memfd, file.fileno()):
    first, second = mmap.mmap(fd, 4096), mmap.mmap(fd, 4096)
    first[:4] = b"seen"
    print(second[:4], os.pread(fd, 4, 0), first[4092:])
print(mmap.mmap(file.fileno(), 4096, offset=4096)[:4])
zero, null = os.open("/dev/zero", os.O_RDWR), os.open("/dev/null", os.O_RDWR)
print(mmap.mmap(zero, 4096)[:4], attempt(null), attempt(os.pipe()[0]))
print(attempt(memfd, access=mmap.ACCESS_READ), os.read(memfd, 0), os.read(null, 0))
""") == [
        *[r"b'seen' b'seen' b'\x00\x00\x00\x00'"] * 2,
        r"b'\x00\x00\x00\x00'",
        r"b'\x00\x00\x00\x00' ENODEV EACCES",
        "mapped b'' b''",
    ]


THREADS = """
import errno, mmap, os, threading
vfio = os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
memfd = os.memfd_create("other")
os.ftruncate(memfd, 4096)
wrong = []

def attempt(fd):
    try:
        mmap.mmap(fd, 4096).close()
    except OSError as error:
        return error.errno

def ask():
    for _ in range(50):
        if (attempt(vfio), attempt(memfd), os.read(memfd, 0)) != (errno.EINVAL, None, b""):
            wrong.append(1)

threads = [threading.Thread(target=ask) for _ in range(8)]
for thread in threads:
    thread.start()
children = []
for _ in range(50):
    if (pid := os.fork()) == 0:
        if attempt(vfio) == errno.EINVAL and not attempt(memfd):
            os.execv("/bin/true", ["true"])
        os._exit(1)
    children.append(pid)
print({os.waitpid(pid, 0)[1] for pid in children})
for thread in threads:
    thread.join()
print(wrong)
"""


def test_many_threads_and_children_at_once_get_their_own_answers():
    # From 3.12 on Python warns of a fork() beside threads.
    assert run("-W", "ignore::DeprecationWarning", "-c", THREADS) == ["{0}", "[]"]


@pytest.mark.parametrize(
    ("call", "numbers"),
    [("os.fstat(memfd)", "5, 262"), ("os.lseek(memfd, 0, 0)", "8"), ("os.read(memfd, 0)", "0")],
)
def test_a_caller_that_waits_can_be_killed(client, call, numbers):
    assert client(f"""
# Nothing of ours is open: its last close would wait for the server, too.
server = os.getppid()
gate, key = os.pipe()
if (pid := os.fork()) == 0:  # before the server stops: from 3.12 on Python reads a file after it
    select.select([gate], [], [])
    {call}
    os._exit(0)
stop(server)
os.write(key, b"!")
wait_for_call(pid, {numbers})
os.kill(pid, 9)
print(os.waitpid(pid, 0)[1])
os.kill(server, signal.SIGCONT)
print(attempt(memfd), os.read(os.open("/dev/iommu", os.O_RDWR), 0))
""") == ["9", "mapped b''"]


def test_without_the_server_only_what_is_ours_cannot_be_mapped(client):
    assert client("""
ours = os.open("/dev/iommu", os.O_RDWR)
server = os.getppid()
pidfd = os.pidfd_open(server)
os.kill(server, 9)
select.select([pidfd], [], [])
print(attempt(ours), attempt(memfd), attempt(memfd, flags=mmap.MAP_PRIVATE), attempt(-1))
print(os.read(memfd, 1), os.read(memfd, 0))
""") == ["ENOTCONN mapped mapped mapped", r"b'\x00' b''"]


def test_callers_in_the_middle_of_it_survive_the_servers_death(client):
    """Whatever the server had taken, or not yet, when it died."""
    for _ in range(5):
        assert client("""
import threading
server = os.getppid()
answers = []
under_way = threading.Barrier(5)

def map_again_and_again():
    under_way.wait()
    answers.extend(attempt(memfd) for _ in range(300))

threads = [threading.Thread(target=map_again_and_again) for _ in range(4)]
for thread in threads:
    thread.start()
under_way.wait()
attempt(memfd)
os.kill(server, 9)
for thread in threads:
    thread.join()
print(len(answers), set(answers))
""") == ["1200 {'mapped'}"]
