"""Under `iommufs run` our nodes look like character devices, by whatever a program asks."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
LONG = 60  # seconds after which something hangs

SOURCE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/stat.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NOFOLLOW = 0x100, NO_AUTOMOUNT = 0x800, EMPTY = 0x1000, FORCE = 0x2000, DONT = 0x4000 };

static void say(const char *what, long result, unsigned mode, dev_t rdev, uint64_t ino) {
  if (result < 0)
    printf("%s: %s\n", what, strerrorname_np(errno));
  else
    printf("%s: %06o %u:%u %lu\n", what, mode, major(rdev), minor(rdev), (unsigned long)ino);
}

static void ask_fstat(const char *what, int fd) {
  struct stat st = {0};
  long r = syscall(SYS_fstat, fd, &st);
  say(what, r, st.st_mode, st.st_rdev, st.st_ino);
}

static void ask_at(const char *what, int fd, const char *path, int flags) {
  struct stat st = {0};
  long r = syscall(SYS_newfstatat, fd, path, &st, flags);
  say(what, r, st.st_mode, st.st_rdev, st.st_ino);
}

static void ask_statx(const char *what, int fd, const char *path, int flags, unsigned mask) {
  struct statx stx = {0};
  long r = syscall(SYS_statx, fd, path, flags, mask, &stx);
  say(what, r, stx.stx_mode, makedev(stx.stx_rdev_major, stx.stx_rdev_minor), stx.stx_ino);
}

#ifdef __x86_64__
static long i386(long nr, long a, long b, long c, long d, long e) {
  long r;
  register long r8 __asm__("r8") = 0;
  __asm__ volatile("int $0x80" : "=a"(r) : "0"(nr), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e), "r"(r8)
                   : "memory");
  errno = -r;
  return r;
}

static void ask_i386(int fd) {
  uint8_t *low = mmap(0, 4096, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  struct statx *stx = (void *)(low + 512);
  long address = (long)low;
  uint64_t rdev, ino;
  uint32_t mode;
  for (int at = 0; at < 2; at++) {
    memset(low, 0, 512);
    long r = at ? i386(300, fd, address + 1024, address, EMPTY, 0)
                : i386(197, fd, address, 0, 0, 0);
    memcpy(&mode, low + 16, 4);
    memcpy(&rdev, low + 32, 8);
    memcpy(&ino, low + 88, 8);
    say(at ? "i386 fstatat64" : "i386 fstat64", r, mode, rdev, ino);
  }
  long r = i386(383, fd, address + 1024, EMPTY, STATX_BASIC_STATS, address + 512);
  say("i386 statx", r, stx->stx_mode, makedev(stx->stx_rdev_major, stx->stx_rdev_minor),
      stx->stx_ino);
}
#endif

static void *in_thread(void *fd) {
  ask_fstat("thread", *(int *)fd);
  return NULL;
}

static int passed(int fd) {
  int ends[2];
  char byte = 0;
  union {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof fd)];
  } control = {0};
  struct iovec iov = {&byte, 1};
  struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                           .msg_controllen = sizeof control};
  control.header = (struct cmsghdr){CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
  memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) || sendmsg(ends[0], &message, 0) != 1 ||
      recvmsg(ends[1], &message, 0) != 1)
    exit(1);
  memcpy(&fd, CMSG_DATA(&control.header), sizeof fd);
  return fd;
}

int main(int argc, char **argv) {
  const char *path = argv[1];
  int fd = open(path, O_RDWR | O_CLOEXEC), directory = open(argv[2], O_PATH);
  const char *name = strrchr(path, '/') + 1;
  struct stat st;
  pthread_t thread;
  setvbuf(stdout, NULL, _IONBF, 0);
  if (fd < 0)
    return 1;
  ask_fstat("fstat", fd);
  ask_at("fstatat", fd, "", EMPTY);
  ask_at("fstatat, no path", fd, NULL, EMPTY);
  ask_at("fstatat, all flags", fd, "", EMPTY | NOFOLLOW | NO_AUTOMOUNT | FORCE);
  ask_at("fstatat, path", fd, path, EMPTY);
  ask_at("fstatat, not a directory", fd, "name", EMPTY);
  ask_at("fstatat, unknown flag and both syncs", fd, "", EMPTY | FORCE | DONT | 0x80000000);
  ask_at("fstatat, no flag", fd, "", 0);
  ask_statx("statx", fd, "", EMPTY, STATX_BASIC_STATS);
  ask_statx("statx, no path", fd, NULL, EMPTY, 0);
  ask_statx("statx, not synced", fd, "", EMPTY | DONT, STATX_BASIC_STATS);
  ask_statx("statx, reserved", fd, "", EMPTY, 0x80000000);
  ask_statx("statx, both syncs", fd, "", EMPTY | FORCE | DONT, 0);
  ask_at("path", AT_FDCWD, path, 0);
  ask_at("path, not followed", AT_FDCWD, path, NOFOLLOW);
  ask_at("path, empty allowed", AT_FDCWD, path, EMPTY);
  ask_at("below a directory", directory, name, EMPTY);
  ask_statx("path by statx", AT_FDCWD, path, NOFOLLOW, STATX_BASIC_STATS);
#ifdef __x86_64__
  long r = syscall(SYS_stat, path, &st);
  say("stat", r, st.st_mode, st.st_rdev, st.st_ino);
  r = syscall(SYS_lstat, path, &st);
  say("lstat", r, st.st_mode, st.st_rdev, st.st_ino);
  ask_i386(fd);
#endif
  int only_path = open(path, O_PATH);
  ask_fstat("O_PATH", only_path);
  char link[64];
  sprintf(link, "/proc/self/fd/%d", only_path);
  int anew = open(link, O_RDWR);
  if (anew >= 0) /* not of a group, which is open already */
    ask_fstat("opened anew", anew);
  ask_fstat("passed", passed(fd));
  pthread_create(&thread, NULL, in_thread, &fd);
  pthread_join(thread, NULL);
  if (!fork()) {
    ask_fstat("child", fd);
    if (!chroot(argv[2]))
      ask_fstat("chroot", fd);
    return 0;
  }
  wait(NULL);
  say("bad pointer", syscall(SYS_fstat, fd, 8), 0, 0, 0);
  say("bad pointer of statx", syscall(SYS_statx, fd, "", EMPTY, 0, 8), 0, 0, 0);
  say("bad path", syscall(SYS_newfstatat, fd, 8, &st, EMPTY), 0, 0, 0);
  uint8_t *pages = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  munmap(pages + 4096, 4096);
  say("half a structure", syscall(SYS_fstat, fd, pages + 4096 - 64), 0, 0, 0);
  say("truncate", truncate(path, 0), 0, 0, 0);
  close(fd);
  ask_fstat("closed", fd);
  ask_fstat("negative", -1);
  return 0;
}
"""

NODES = {
    "/dev/vfio/vfio": (0o666, (10, 196)),
    "/dev/vfio/devices/vfio1": (0o600, (251, 1)),
    "/dev/vfio/11": (0o600, (252, 3)),
}
REFUSED = {
    "fstatat, not a directory": "ENOTDIR",
    "fstatat, no flag": "ENOENT",
    "statx, reserved": "EINVAL",
    "statx, both syncs": "EINVAL",
    "bad pointer": "EFAULT",
    "bad pointer of statx": "EFAULT",
    "bad path": "EFAULT",
    "half a structure": "EFAULT",
    "truncate": "EINVAL",
    "closed": "EBADF",
    "negative": "EBADF",
}


def run(*command, check=True):
    result = subprocess.run(
        [sys.executable, "-m", "iommufs.cli", "run", "--", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=LONG, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if check:
        assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


@pytest.fixture(scope="module", params=["static", "dynamic"])
def asker(request, tmp_path_factory):
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("looks")
    (directory / "ask.c").write_text(SOURCE)
    link = ["-static"] if request.param == "static" else []
    command = [compiler, *link, "-w", "-pthread", "-o", "ask", "ask.c"]
    subprocess.run(command, cwd=directory, check=True)
    return directory / "ask"


@pytest.mark.parametrize("path", NODES)
def test_every_way_to_ask_gives_the_same_device(asker, path):
    permissions, (major, minor) = NODES[path]
    answers = dict(line.split(": ", 1) for line in run(asker, path, os.path.dirname(path)))
    inode = answers["fstat"].split()[-1]
    look = f"{stat.S_IFCHR | permissions:06o} {major}:{minor} {inode}"
    assert {name: answers.pop(name) for name in REFUSED} == REFUSED
    assert set(answers.values()) == {look}, answers
    assert len(answers) >= 20


def test_the_node_of_the_iommufd_looks_like_one(asker):
    answers = dict(line.split(": ", 1) for line in run(asker, "/dev/iommu", "/dev"))
    inode = answers["fstat"].split()[-1]
    assert answers["fstat"] == f"020660 10:258 {inode}"
    for how in ("statx", "fstatat", "passed", "stat"):
        assert answers[how] == answers["fstat"], how


ORDINARY = """
import os, stat
for name in os.listdir("/sys/class/vfio-dev"):
    number = open(f"/sys/class/vfio-dev/{name}/dev").read().strip()
    paths = f"/dev/vfio/devices/{name}", f"/dev/char/{number}"
    looks = [os.stat(path) for path in paths]
    with open(paths[1], "rb+", buffering=0) as file:
        looks.append(os.fstat(file.fileno()))
    assert all(stat.S_ISCHR(look.st_mode) for look in looks), name
    assert {f"{os.major(l.st_rdev)}:{os.minor(l.st_rdev)}" for l in looks} == {number}
    assert len({look.st_ino for look in looks}) == 1
    print(name)
"""


def test_numbers_agree_with_sysfs():
    assert sorted(run(sys.executable, "-c", ORDINARY)) == [f"vfio{n}" for n in range(7)]


def test_ordinary_programs_see_devices():
    lines = run("sh", "-c", "find /dev/vfio -type c | sort; test -c /dev/vfio/vfio && echo yes")
    groups, devices = ("10", "11", "12", "5", "9"), [f"devices/vfio{n}" for n in range(7)]
    assert lines == [*(f"/dev/vfio/{name}" for name in (*groups, *devices, "vfio")), "yes"]
    (line,) = run("ls", "-l", "/dev/vfio/vfio")
    assert line.startswith("crw-rw-rw- 1 root root 10, 196 ")


USERS = """
import os, subprocess, sys
fd = os.open("/dev/vfio/vfio", os.O_RDWR)
program = "import os, sys; st = os.fstat(int(sys.argv[1])); print(st.st_uid, st.st_gid, st.st_rdev)"
command = ["unshare", "--user", *sys.argv[1:], sys.executable, "-c", program, str(fd)]
print(subprocess.run(command, pass_fds=[fd], capture_output=True, text=True).stdout, end="")
"""


@pytest.mark.parametrize(("options", "owner"), [([], 65534), (["--map-root-user"], 0)])
def test_owners_are_those_of_the_callers_user_namespace(options, owner):
    if subprocess.run(["unshare", "--user", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces")
    rdev = os.makedev(10, 196)
    assert run(sys.executable, "-c", USERS, *options) == [f"{owner} {owner} {rdev}"]


DMABUF = """
import errno, fcntl, os, struct
iommufd = os.open("/dev/iommu", os.O_RDWR)
device = os.open("/dev/vfio/devices/vfio1", os.O_RDWR)
fcntl.ioctl(device, 0x3B76, bytearray(struct.pack("IIiI", 16, 0, iommufd, 0)))
request = bytearray(struct.pack("IIIIIIQQ", 40, 1 << 16 | 11, 0, os.O_RDWR, 0, 1, 0, 4096))
fd = fcntl.ioctl(device, 0x3B75, request)
look = os.fstat(fd)
print(oct(look.st_mode), look.st_size)

def seek(offset, whence):
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        return errno.errorcode[error.errno]

for whence in (0, 1, 2, 3, 4, 9):
    print([seek(offset, whence) for offset in (0, 1, 4096, -1)])
"""


def test_a_dma_buf_tells_its_length():
    """What the reference guest printed."""
    refused = str(["EINVAL"] * 4)
    assert run(sys.executable, "-c", DMABUF) == [
        "0o600 4096",
        "[0, 'EINVAL', 'EINVAL', 'EINVAL']",
        refused,
        "[4096, 'EINVAL', 'EINVAL', 'EINVAL']",
        *[refused] * 3,
    ]
