"""`iommufs check`: what this machine can do, what it cannot, and what would change that.

Nothing is concluded from names and versions where it can be tried: a child process of its own
mounts, asks the kernel's FUSE what it can do, and puts on a filter, where nothing of it is seen.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from iommufs import fusermount, launcher, namespace, syscalls, user_namespace

YES, LESS, NO = "yes", "less", "no"

PTRACE_SCOPE = "/proc/sys/kernel/yama/ptrace_scope"
_PROCMAP_QUERY = 0xC0686611
_PASSTHROUGH, _DIRECT_IO_ALLOW_MMAP = 1 << 37, 1 << 36
_FUSE_INIT = struct.Struct("=40x4II")  # major, minor, max_readahead, flags, flags2


@dataclass(frozen=True)
class Finding:
    """One thing that runs want.

    state   yes; less: it works, but not as well; no: `iommufs run` cannot work
    remedy  the one command, or change, that makes it yes; "" if there is none or none is needed
    """

    name: str
    state: str
    text: str
    remedy: str = ""


def run() -> list[Finding]:
    """Everything, in the order in which it is needed."""
    tried = _try_in_child()
    return [
        _device(),
        _mounting(tried),
        *_mapping(tried),
        _descriptors(tried),
        _memory(),
        _shared_memory(),
        _question(),
        _mount_command(),
        _memlock(),
        _hugepages(),
    ]


def text(findings: list[Finding]) -> str:
    """A line for each, a second one where something would change it."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:5}{finding.name:24}{finding.text}")
        if finding.remedy:
            lines.append(f"{'':29}to change it: {finding.remedy}")
    return "\n".join(lines)


def objects(findings: list[Finding]) -> list[dict[str, Any]]:
    return [asdict(finding) for finding in findings]


# ---- what a child tries --------------------------------------------------------------------------


def _try_in_child() -> dict[str, Any]:
    """What came of each try: `mount`, `fuse`, `filter`; what is missing was not come to."""
    out, put = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            for name, value in _tries():
                os.write(put, json.dumps({name: value}).encode() + b"\n")
        finally:
            os._exit(0)
    os.close(put)
    with open(out, encoding="utf-8") as file:
        lines = file.readlines()
    os.waitpid(pid, 0)
    return {name: value for line in lines for name, value in json.loads(line).items()}


def _tries() -> Iterator[tuple[str, Any]]:
    try:
        namespace.enter_server()
    except OSError as error:
        yield "mount", error.strerror
        return
    yield "mount", ""
    try:
        yield "fuse", _ask_fuse()
    except OSError as error:
        yield "fuse", error.strerror
    from iommufs import seccomp

    try:
        seccomp.install_filter()
    except OSError as error:
        yield "filter", error.strerror
    else:
        yield "filter", ""


def _ask_fuse() -> int:
    """The flags with which the kernel introduces itself to a FUSE server."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"
    syscalls.mount("iommufs", namespace.TREE, "fuse", 0, options)
    *_, flags, flags2 = _FUSE_INIT.unpack_from(os.read(device, 1 << 17))
    return flags | flags2 << 32


# ---- findings ------------------------------------------------------------------------------------


def _device() -> Finding:
    try:
        launcher.check_machine()
    except launcher.LaunchError as error:
        what, _, remedy = str(error).partition(": ")
        return Finding("/dev/fuse", NO, what, remedy)
    return Finding("/dev/fuse", YES, "can be opened")


def _mounting(tried: dict[str, Any]) -> Finding:
    if tried.get("mount", "it cannot be tried"):
        what, _, remedy = tried["mount"].partition(": ")
        return Finding("namespaces", NO, what, remedy)
    if user_namespace.may_mount():
        return Finding("namespaces", YES, "as root")
    return Finding("namespaces", YES, "in a user namespace of each run's own")


def _mapping(tried: dict[str, Any]) -> Iterator[Finding]:
    name = "mapping BARs"
    flags = tried.get("fuse")
    if flags is None or isinstance(flags, str):
        why = "nothing can be mounted" if flags is None else f"FUSE cannot be mounted: {flags}"
        yield Finding(name, NO, why)
        return
    with open("/proc/self/uid_map", encoding="ascii") as file:
        is_machine_root = user_namespace.may_mount() and file.read().split()[2] == "4294967295"
    if flags & _PASSTHROUGH and is_machine_root:
        yield Finding(name, YES, "passed through to memory")
    elif flags & _DIRECT_IO_ALLOW_MMAP:
        remedy = "run as root (sudo)" if flags & _PASSTHROUGH else "Linux 6.9 or later, as root"
        yield Finding(name, LESS, "through the page cache", remedy)
    else:
        remedy = "Linux 6.9 or later as root, 6.6 otherwise"
        yield Finding(name, LESS, "this kernel cannot: programs read() and write()", remedy)


def _descriptors(tried: dict[str, Any]) -> Finding:
    name = "returned descriptors"
    if "filter" not in tried:
        return Finding(name, NO, "nothing can be mounted")
    if not tried["filter"]:
        return Finding(name, YES, "a filter can be put on")
    remedy = "run it outside of another run, or of a container whose manager listens itself"
    return Finding(name, LESS, f"no filter: {tried['filter']}", remedy)


def _ptrace_scope() -> int:
    """Yama's; 0 where there is none."""
    try:
        with open(PTRACE_SCOPE, encoding="ascii") as file:
            return int(file.read())
    except OSError:
        return 0


def _memory() -> Finding:
    name, scope = "memory of programs", _ptrace_scope()
    if scope < 3:
        return Finding(name, YES, f"can be read and written (kernel.yama.ptrace_scope={scope})")
    return Finding(name, NO, "kernel.yama.ptrace_scope=3 forbids it", "boot with another value")


def _shared_memory() -> Finding:
    name = "shared memory"
    if _works(_open_map_file):
        return Finding(name, YES, "is mapped, and outlives the program's mapping")
    return Finding(name, LESS, "is copied in the program's process", "run as root (sudo)")


def _open_map_file() -> None:
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        place = next(line.split()[0] for line in file if "/" in line)
    start, end = (f"{int(word, 16):x}" for word in place.split("-"))
    os.close(os.open(f"/proc/self/map_files/{start}-{end}", os.O_RDONLY | os.O_CLOEXEC))


def _question() -> Finding:
    name = "asking for mappings"
    if _works(_ask_procmap):
        return Finding(name, YES, "one call for each (PROCMAP_QUERY)")
    return Finding(name, LESS, "by reading /proc/PID/maps", "Linux 6.11 or later")


def _ask_procmap() -> None:
    query = bytearray(struct.pack("=Q", 104).ljust(104, b"\0"))
    query[8:16] = struct.pack("=Q", 0x10)  # covering or next
    with open("/proc/self/maps", "rb") as file:
        fcntl.ioctl(file, _PROCMAP_QUERY, query)


def _mount_command() -> Finding:
    name = "iommufs mount"
    if user_namespace.may_mount():
        return Finding(name, YES, "for all users")
    if scope := _ptrace_scope():
        why = f"cannot touch the memory of programs: kernel.yama.ptrace_scope={scope}"
        return Finding(name, LESS, why, "sysctl kernel.yama.ptrace_scope=0")
    if shutil.which(fusermount.PROGRAM):
        return Finding(name, LESS, "for this user, by fusermount3", "run as root (sudo)")
    return Finding(name, LESS, "not without fusermount3", "apt-get install fuse3")


def _memlock() -> Finding:
    name = "memory for DMA"
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if user_namespace.may_mount():
        return Finding(name, YES, "without a limit for root")
    if soft == resource.RLIM_INFINITY:
        return Finding(name, YES, "without a limit (RLIMIT_MEMLOCK)")
    is_free = hard == resource.RLIM_INFINITY
    remedy = "ulimit -l unlimited" if is_free else "memlock in /etc/security/limits.conf"
    return Finding(name, LESS, f"{soft >> 10} KiB (RLIMIT_MEMLOCK)", remedy)


def _hugepages() -> Finding:
    name = "hugepages"
    with open("/proc/meminfo", encoding="ascii") as file:
        total = next(int(line.split()[1]) for line in file if line.startswith("HugePages_Total"))
    if total:
        return Finding(name, YES, f"{total} in the machine's pool")
    return Finding(name, LESS, "none, for programs that want some", "sysctl vm.nr_hugepages=64")


def _works(function: Callable[[], None]) -> bool:
    try:
        function()
    except OSError:
        return False
    return True
