"""Ioctls that return descriptors: what arrives in the client; nothing does after a failure.

What the nodes do is in small_run.py.
"""

import errno
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.mount

# What the clients below begin with.
CLIENT = """
import ctypes, errno, fcntl, os, resource, select, signal, sys, threading
FAULT_QUEUE_ALLOC, GET_DEVICE_FD, COUNT, VEVENTQ_ALLOC = 0x3b8e, 0x3b6a, 0x3b87, 0x3b93
FEATURE, TEST_CMD = 0x3b75, 0x3ba0
libc = ctypes.CDLL(None, use_errno=True)

def ioctl(fd, cmd, arg=0):
    result = libc.ioctl(fd, ctypes.c_ulong(cmd), ctypes.c_void_p(arg))
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]

def fds():
    return sorted(int(name) for name in os.listdir("/proc/self/fd"))

iommu = os.open("/dev/iommu", os.O_RDWR)
memory = ctypes.create_string_buffer(4096)
address = ctypes.addressof(memory)

def word(offset):
    return int.from_bytes(memory[offset:offset + 4], "little")

def wait_for_ioctl(process):
    "Wait until a process, or task/TID of ours, is in ioctl(2)."
    while open(f"/proc/{process}/syscall").read().split()[0] != "16":
        pass

def alloc():
    "The descriptor in the structure that FAULT_QUEUE_ALLOC writes."
    memory[:16] = bytes(16)
    assert ioctl(iommu, FAULT_QUEUE_ALLOC, address) == 0
    assert (word(0), word(4), word(8)) == (16, 0, 77)
    return word(12)
"""


@pytest.fixture
def client(runs):
    def run(program):
        result = runs.python(CLIENT + program)
        assert result.stderr == ""
        assert result.returncode == 0
        return result.stdout.splitlines()

    return run


@pytest.mark.parametrize("made", ["alloc()", "ioctl(iommu, GET_DEVICE_FD)"])
def test_a_returned_descriptor_is_the_lowest_free_open_and_close_on_exec(client, made):
    lines = client(f"""
hole = os.open("/dev/null", os.O_RDONLY)
os.open("/dev/null", os.O_RDONLY)
os.close(hole)
fd = {made}
print(fd == hole, os.read(fd, 10), os.get_inheritable(fd), ioctl(iommu, COUNT))
os.close(fd)
print(ioctl(iommu, COUNT))
""")
    assert lines == ["True b'made' False 1", "0"]


def test_a_bad_pointer_leaves_nothing(client):
    assert client("""
before = fds()
print(ioctl(iommu, FAULT_QUEUE_ALLOC, 8), fds() == before, ioctl(iommu, COUNT))
""") == ["EFAULT True 0"]


@pytest.mark.parametrize("call", ["FAULT_QUEUE_ALLOC, address", "GET_DEVICE_FD"])
def test_a_full_table_is_emfile_and_touches_nothing(client, call):
    assert client(f"""
full = 50
while os.open("/dev/null", os.O_RDONLY) < full - 1:
    pass
resource.setrlimit(resource.RLIMIT_NOFILE, (full, full))
memory[:16] = b"x" * 16
print(ioctl(iommu, {call}), memory[:16] == b"x" * 16, ioctl(iommu, COUNT))
""") == ["EMFILE True 0"]


def test_numbers_are_right_while_threads_open_and_close_files(client):
    assert client("""
over = threading.Event()

def disturb():
    while not over.is_set():
        for fd in [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]:
            os.close(fd)

threads = [threading.Thread(target=disturb) for _ in range(2)]
for thread in threads:
    thread.start()
fds = [alloc() for _ in range(100)] + [ioctl(iommu, GET_DEVICE_FD) for _ in range(100)]
over.set()
for thread in threads:
    thread.join()
print(len(set(fds)), {os.read(fd, 10) for fd in fds}, ioctl(iommu, COUNT))
""") == ["200 {b'made'} 200"]


def test_children_threads_and_programs_they_execute_have_it_too(client):
    assert client("""
threads = []
thread = threading.Thread(target=lambda: threads.append(os.read(alloc(), 10)))
thread.start()
thread.join()
print(threads)
sys.stdout.flush()
if os.fork() == 0:
    print(os.read(alloc(), 10), flush=True)
    os._exit(0)
os.wait()
print(ioctl(iommu, COUNT), flush=True)
program = (
    "import fcntl, os, sys; fd = fcntl.ioctl(int(sys.argv[1]), 0x3b6a, 0);"
    "print(os.read(fd, 10))"
)
os.set_inheritable(iommu, True)
os.execv(sys.executable, [sys.executable, "-c", program, str(iommu)])
""") == ["[b'made']", "b'made'", "1", "b'made'"]


def test_files_of_others_go_on_untouched(client):
    assert client("""
path = os.open("/dev/iommu", os.O_PATH)
null = os.open("/dev/null", os.O_RDWR)
directory = os.open("/dev/vfio", os.O_RDONLY)
for fd in (null, 999, -1, path, directory):
    print(ioctl(fd, GET_DEVICE_FD), ioctl(fd, FAULT_QUEUE_ALLOC, address))
""") == ["ENOTTY ENOTTY", *["EBADF EBADF"] * 3, "ENOTTY ENOTTY"]


def test_only_calls_that_return_descriptors_leave_the_ordinary_road(client):
    """EPROTO: by the filter; ENOTTY: through FUSE."""
    assert client("""
def call(cmd, second):
    memory[:8] = (64).to_bytes(4, "little") + second.to_bytes(4, "little")
    return ioctl(iommu, cmd, address)

GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18
print(call(FEATURE, SET | 2), call(FEATURE, GET | 11))
print(call(FEATURE, GET | 2), call(FEATURE, SET | PROBE | 2), call(FEATURE, SET | 3))
print(call(TEST_CMD, 5), call(TEST_CMD, 22), call(TEST_CMD, 4), ioctl(iommu, TEST_CMD, 8))
""") == ["EPROTO EPROTO", "ENOTTY ENOTTY ENOTTY", "EPROTO EPROTO ENOTTY ENOTTY"]


def test_programs_may_still_gain_privileges(client):
    assert client("""
status = open("/proc/self/status").read().split("\\n")
print([line for line in status if line.startswith(("NoNewPrivs", "Seccomp:"))])
""") == [r"['NoNewPrivs:\t0', 'Seccomp:\t2']"]


def test_a_caller_killed_in_the_call_ends_at_once(client):
    assert client("""
if (pid := os.fork()) == 0:
    ioctl(iommu, VEVENTQ_ALLOC, address)
    os._exit(0)
wait_for_ioctl(pid)
os.kill(pid, 9)
print(os.waitpid(pid, 0)[1])
""") == ["9"]


def test_what_a_caller_had_open_is_closed_when_it_was_killed_in_the_call(client):
    """The server is at the call still; its file can be opened again all the same."""
    assert client("""
path = "/dev/vfio/single"
if (pid := os.fork()) == 0:
    ioctl(os.open(path, os.O_RDWR), VEVENTQ_ALLOC, address)
    os._exit(0)
wait_for_ioctl(pid)
os.kill(pid, 9)
os.waitpid(pid, 0)
print(os.read(os.open(path, os.O_RDWR), 4))
""") == ["b'ours'"]


def test_after_the_servers_death_the_calls_fail_at_once(client):
    """The one that the server had taken too. ENOTCONN is FUSE's answer."""
    assert client("""
results = []
thread = threading.Thread(target=lambda: results.append(ioctl(iommu, VEVENTQ_ALLOC, address)))
thread.start()
wait_for_ioctl(f"self/task/{thread.native_id}")
os.kill(os.getppid(), 9)
thread.join()
print(results, ioctl(iommu, GET_DEVICE_FD), ioctl(os.memfd_create("x"), GET_DEVICE_FD))
""") == ["['ENOTCONN'] ENOTCONN ENOTTY"]


def test_what_outlives_the_command_survives_the_servers_death(client):
    """The front is gone by then."""
    assert client("""
server = os.pidfd_open(os.getppid())
out, put = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.close(put)
    os.read(out, 1)  # its end: the command has ended
    signal.pidfd_send_signal(server, 9)
    select.select([server], [], [])
    print(ioctl(iommu, GET_DEVICE_FD), ioctl(os.memfd_create("x"), GET_DEVICE_FD), flush=True)
    os._exit(0)
os.close(out)
""") == ["ENOTCONN ENOTTY"]


STATIC_CLIENT = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static char text[8];

int main(int argc, char **argv) {
  int iommu = open("/dev/iommu", O_RDWR);
  long fd = argc == 1 ? ioctl(iommu, 0x3b6a, 0) : -ENOSYS;
  if (argc > 1 && !strcmp(argv[1], "i386"))
    __asm__ volatile("int $0x80" : "=a"(fd) : "0"(54), "b"(iommu), "c"(0x3b6a), "d"(0) : "memory");
  if (argc > 1 && !strcmp(argv[1], "x32"))
    fd = syscall(0x40000000 | 514, iommu, 0x3b6a, 0) < 0 ? -errno : 0;
  if (fd < 0)
    return printf("%s\n", strerrorname_np(-fd)), 0;
  read(fd, text, sizeof text - 1);
  return puts(text) < 0;
}
"""


@pytest.fixture(scope="module")
def static_client(tmp_path_factory):
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("static")
    source = directory / "client.c"
    source.write_text("#define _GNU_SOURCE\n" + STATIC_CLIENT)
    program = directory / "client"
    subprocess.run([compiler, "-static", "-w", "-o", program, source], check=True)
    return program


def test_static_programs_work(runs, static_client):
    assert runs.run(static_client).stdout == "made\n"


@pytest.mark.parametrize("table", ["i386", "x32"])
def test_other_system_call_tables_work_where_the_kernel_has_them(runs, static_client, table):
    bare = subprocess.run([static_client, table], capture_output=True, text=True)
    if bare.returncode < 0 or bare.stdout == "ENOSYS\n":
        pytest.skip(f"this kernel has no {table} system calls")
    assert runs.run(static_client, table).stdout == "made\n"


UNMOUNT_WHILE_OPENING = """
import os, sys, threading
from iommufs._native import lib
assert lib.iofs_transport_mount(os.fsencode(sys.argv[1])) == 0
results = []
path = os.path.join(sys.argv[1], "anything").encode()
threads = [
    threading.Thread(target=lambda: results.append(lib.iofs_transport_open(path, os.O_RDWR)))
    for _ in "ab"
]
for thread in threads:
    thread.start()

def opens():
    for task in os.listdir("/proc/self/task"):
        number = open(f"/proc/self/task/{task}/syscall").read().split()[0]
        if number == "257" and int(task) not in (os.getpid(), *(t.native_id for t in threads)):
            return True

while not opens():
    pass
lib.iofs_transport_unmount()
for thread in threads:
    thread.join()
print(sorted(results))
"""


def test_unmounting_ends_an_open_of_our_own_that_nobody_serves(tmp_path):
    """As when a run ends while a descriptor is being made."""
    command = [sys.executable, "-c", UNMOUNT_WHILE_OPENING, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    errors = {-errno.ENOTCONN, -errno.ECONNABORTED}
    assert result.stderr == ""
    assert {int(word) for word in result.stdout.strip("[]\n").split(",")} <= errors


def test_threads_that_are_given_descriptors_at_once_do_not_wait_for_each_other(client):
    """One call is looked up while the file of another is opened; both ask our own mount."""
    assert client("""
def alloc_many():
    for _ in range(50):
        os.close(ioctl(iommu, GET_DEVICE_FD))

threads = [threading.Thread(target=alloc_many) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(ioctl(iommu, COUNT))
""") == ["0"]
