"""What the system calls that work on any file do to ours: one line each, for a guest and for us.

Run on a real Linux 7.3 with the devices of the default topology, it printed linux_7.3.txt.
"""

import ctypes
import errno
import fcntl
import os
import select
import struct

libc = ctypes.CDLL(None, use_errno=True)
SYSCALLS = {
    "splice": 275, "sendfile": 40, "copy_file_range": 326, "fallocate": 285, "fadvise64": 221,
    "readahead": 187, "sync_file_range": 277, "syncfs": 306, "getdents64": 217, "lseek": 8,
    "preadv2": 327, "pwritev2": 328, "fgetxattr": 193, "fsetxattr": 190, "ftruncate": 77,
    "vmsplice": 278, "tee": 276,
}  # fmt: skip
FIONREAD, FIONBIO, FIOASYNC, FIOCLEX, FIONCLEX = 0x541B, 0x5421, 0x5452, 0x5451, 0x5450
FIOQSIZE, FIGETBSZ, FIBMAP, FICLONE, FIFREEZE = 0x5460, 2, 1, 0x40049409, 0xC0045877
FS_IOC_GETFLAGS, FS_IOC_FIEMAP, FS_IOC_FSGETXATTR = 0x80086601, 0xC020660B, 0x801C581F
TCGETS, BLKGETSIZE = 0x5401, 0x1260
BIND, IOAS_ALLOC, FAULT_QUEUE_ALLOC = 0x3B76, 0x3B81, 0x3B8E

memory = ctypes.create_string_buffer(65536)
ADDRESS = ctypes.addressof(memory)


def outcome(call):
    """What it returns, or the name of its errno."""
    try:
        result = call()
    except OSError as error:
        return errno.errorcode[error.errno]
    return result.hex() if isinstance(result, bytes) else result


def system(name, *args):
    def call():
        words = [ctypes.c_long(arg) for arg in args]
        result = libc.syscall(SYSCALLS[name], *words)
        if result < 0:
            raise OSError(ctypes.get_errno(), "")
        return result

    return call


def ioctl(fd, number, argument=None):
    """The number's result and what it wrote, in four bytes."""

    def call():
        address = ADDRESS if argument is None else argument
        ctypes.memset(ADDRESS, 0, 64)
        result = libc.ioctl(fd, ctypes.c_ulong(number), ctypes.c_void_p(address))
        if result < 0:
            raise OSError(ctypes.get_errno(), "")
        return f"{result} {memory[:4].hex()}"

    return call


def events(fd):
    poll = select.poll()
    poll.register(fd, 0x3FFF)
    return [hex(found) for _, found in poll.poll(0)]


def epoll(fd):
    poll = select.epoll()
    poll.register(fd, 0x3FFF)
    return [hex(found) for _, found in poll.poll(0)]


def set_flag(fd, flag):
    def call():
        old = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, old | flag)
        found = fcntl.fcntl(fd, fcntl.F_GETFL) & flag
        fcntl.fcntl(fd, fcntl.F_SETFL, old)
        return hex(found)

    return call


def lock(fd, command):
    return lambda: len(fcntl.fcntl(fd, command, struct.pack("hhqqi4x", 1, 0, 0, 0, 0)))


def pipe_of(data):
    out, into = os.pipe()
    os.write(into, data)
    return out, into


def ask(name, fd):
    def say(what, call):
        print(f"{name}: {what}: {outcome(call)}", flush=True)

    out, into = pipe_of(bytes(64))
    file = os.memfd_create("file")
    os.write(file, bytes(4096))
    os.lseek(file, 0, os.SEEK_SET)
    say("poll", lambda: events(fd))
    say("epoll", lambda: epoll(fd))
    say("select", lambda: [len(ready) for ready in select.select([fd], [fd], [fd], 0)])
    say("fsync", lambda: os.fsync(fd))
    say("fdatasync", lambda: os.fdatasync(fd))
    say("syncfs", system("syncfs", fd))
    say("sync_file_range", system("sync_file_range", fd, 0, 0, 2))
    say("fallocate", system("fallocate", fd, 0, 0, 4096))
    say("fallocate, a hole", system("fallocate", fd, 3, 0, 4096))
    say("ftruncate", system("ftruncate", fd, 0))
    say("ftruncate -1", system("ftruncate", fd, -1))
    say("fadvise", system("fadvise64", fd, 0, 0, 3))
    say("readahead", system("readahead", fd, 0, 4096))
    say("getdents", system("getdents64", fd, ADDRESS, 4096))
    say("fgetxattr", system("fgetxattr", fd, ctypes.addressof(NAME), ADDRESS, 64))
    say("fsetxattr", system("fsetxattr", fd, ctypes.addressof(NAME), ADDRESS, 1, 0))
    for flag in ("O_ASYNC", "O_NONBLOCK", "O_APPEND", "O_DIRECT", "O_NOATIME"):
        say(f"F_SETFL {flag}", set_flag(fd, getattr(os, flag)))
    say("F_SETOWN", lambda: fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid()))
    say("F_SETLEASE", lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK))
    say("F_SETPIPE_SZ", lambda: fcntl.fcntl(fd, 1031, 4096))
    say("F_ADD_SEALS", lambda: fcntl.fcntl(fd, 1033, 1))
    say("F_SETLK", lock(fd, fcntl.F_SETLK))
    say("F_OFD_SETLK", lock(fd, 37))
    say("flock", lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
    say("flock, unlock", lambda: fcntl.flock(fd, fcntl.LOCK_UN))
    for number in (
        *("FIONREAD", "FIONBIO", "FIOASYNC", "FIOCLEX", "FIONCLEX", "FIOQSIZE", "FIGETBSZ"),
        *("FIBMAP", "FIFREEZE", "FS_IOC_GETFLAGS", "FS_IOC_FIEMAP", "FS_IOC_FSGETXATTR"),
        *("TCGETS", "BLKGETSIZE"),
    ):
        say(number, ioctl(fd, globals()[number]))
    say("FIONBIO NULL", ioctl(fd, FIONBIO, 0))
    say("FICLONE", ioctl(fd, FICLONE, file))
    say("read", lambda: os.read(fd, 4))
    say("readv", lambda: os.readv(fd, [bytearray(1), bytearray(3)]))
    say("write", lambda: os.write(fd, bytes(4)))
    say("writev", lambda: os.writev(fd, [bytes(1), bytes(3)]))
    say("splice from", system("splice", fd, 0, into, 0, 16, 0))
    say("splice to", system("splice", out, 0, fd, 0, 16, 0))
    say("sendfile from", system("sendfile", into, fd, 0, 16))
    say("sendfile to", system("sendfile", fd, file, 0, 16))
    say("copy_file_range from", system("copy_file_range", fd, 0, file, 0, 16, 0))
    say("copy_file_range to", system("copy_file_range", file, 0, fd, 0, 16, 0))
    for where in (0, 1, 3, 4095, -1, 1 << 62):
        say(f"pread at {where}", lambda where=where: os.pread(fd, 4, where))
        say(f"pwrite at {where}", lambda where=where: os.pwrite(fd, bytes(4), where))
    say("preadv2, flag", system("preadv2", fd, ADDRESS, 0, 0, 0, 1 << 20))
    say("preadv2, nowait", lambda: os.preadv(fd, [bytearray(4)], 0, os.RWF_NOWAIT))
    say("openat", lambda: os.open("x", os.O_RDONLY, dir_fd=fd))
    say("fchdir", lambda: os.fchdir(fd))
    say("fexecve", lambda: os.execve(fd, ["x"], {}))
    for each in (out, into, file):
        os.close(each)


def ask_vectors(name, fd):
    """Reads and writes of a bound device in several pieces: 0x2 in its BAR 0, and its config."""
    config = 7 << 40

    def say(what, call):
        print(f"{name}: {what}: {outcome(call)}", flush=True)

    def read(where, *lengths):
        parts = [bytearray(length) for length in lengths]
        return f"{os.preadv(fd, parts, where)} {b''.join(parts).hex()}"

    say("preadv config 1, 3, 4", lambda: read(config, 1, 3, 4))
    say("preadv config 0, 2", lambda: read(config, 0, 2))
    say("preadv config, over its end", lambda: read(config + 4094, 2, 4))
    say("preadv config, past its end", lambda: read(config + 4096, 2, 4))
    say("pwritev config", lambda: os.pwritev(fd, [b"\x40", b"", b"\x01"], config + 0x3C))
    say("preadv config line", lambda: read(config + 0x3C, 1))
    say("pwritev config, over its end", lambda: os.pwritev(fd, [bytes(2), bytes(4)], config + 4094))
    say("preadv of a region that is not there", lambda: read(9 << 40, 4))
    say("preadv of nothing", lambda: read(config, 0))
    say("splice from config", lambda: splice(fd, config))
    say("sendfile from config", lambda: sendfile(fd, config))


def splice(fd, where):
    out, into = os.pipe()
    n = os.splice(fd, into, 8, offset_src=where)
    return f"{n} {os.read(out, 8).hex()}"


def sendfile(fd, where):
    out, into = os.pipe()
    n = os.sendfile(into, fd, where, 8)
    return f"{n} {os.read(out, 8).hex()}"


NAME = ctypes.create_string_buffer(b"user.x")


def main():
    iommufd = os.open("/dev/iommu", os.O_RDWR)
    unbound = os.open("/dev/vfio/devices/vfio1", os.O_RDWR)
    ask("iommufd", iommufd)
    ask("container", os.open("/dev/vfio/vfio", os.O_RDWR))
    ask("group", os.open("/dev/vfio/5", os.O_RDWR))
    ask("unbound", unbound)
    bound = os.open("/dev/vfio/devices/vfio2", os.O_RDWR)
    fcntl.ioctl(bound, BIND, bytearray(struct.pack("IIiI", 16, 0, iommufd, 0)))
    ask("bound", bound)
    ask_vectors("vectors", bound)
    queue = bytearray(struct.pack("IIIi", 16, 0, 0, 0))
    fcntl.ioctl(iommufd, FAULT_QUEUE_ALLOC, queue)
    faults = struct.unpack("IIIi", queue)[3]
    os.set_blocking(faults, False)
    ask("faults", faults)


main()
