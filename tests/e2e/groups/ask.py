"""Asks the kernel, or iommufs, all about VFIO groups: one line per answer.

Run on a Linux with the devices of the default machine, its answers are linux_7.3.txt. A line is
`section: what it was: result`, a result a number or an errno; descriptors are `fd`.
"""

import ctypes
import errno
import mmap
import os
import resource
import signal
import struct
import sys
from pathlib import Path

EDU, NVME, NIC0, NIC1, BRIDGE_EDU, TESTDEV, IGB = (
    "0000:00:06.0", "0000:01:00.0", "0000:02:00.0", "0000:02:00.1", "0000:04:01.0", "0000:04:02.0",
    "0000:05:00.0",
)  # fmt: skip
GROUPS = {EDU: 5, NVME: 9, NIC0: 10, NIC1: 10, BRIDGE_EDU: 11, TESTDEV: 11, IGB: 12}
CDEVS = {EDU: 0, NVME: 1, NIC0: 2, NIC1: 3, BRIDGE_EDU: 4, TESTDEV: 5, IGB: 6}

GET_API_VERSION, CHECK_EXTENSION, SET_IOMMU = 0x3B64, 0x3B65, 0x3B66
GET_STATUS, SET_CONTAINER, UNSET_CONTAINER, GET_DEVICE_FD = 0x3B67, 0x3B68, 0x3B69, 0x3B6A
GET_INFO, REGION_INFO, IRQ_INFO, SET_IRQS, RESET = 0x3B6B, 0x3B6C, 0x3B6D, 0x3B6E, 0x3B6F
HOT_RESET_INFO, HOT_RESET, FEATURE = 0x3B70, 0x3B71, 0x3B75
IOMMU_GET_INFO, MAP_DMA, UNMAP_DMA = 0x3B70, 0x3B71, 0x3B72
BIND, ATTACH, DETACH = 0x3B76, 0x3B77, 0x3B78
DESTROY, IOAS_ALLOC, VFIO_IOAS = 0x3B80, 0x3B81, 0x3B88
CONFIG = 7 << 40

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
pages = mmap.mmap(-1, 4 * 4096)
PAGES = ctypes.addressof(ctypes.c_char.from_buffer(pages))
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
section = ""
opened = []


def say(what, result):
    print(f"{section}: {what}: {result}", flush=True)


def ioctl(fd, number, arg=0):
    result = libc.ioctl(fd, number, arg)
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]


def put(data, at=0):
    "Bytes in our memory; their address."
    pages[at : at + len(data)] = data
    return PAGES + at


def words(count, at=0):
    return struct.unpack_from(f"<{count}I", pages, at)


def keep(fd):
    if isinstance(fd, int):
        opened.append(fd)
    return fd


def close(fd):
    if isinstance(fd, int):
        opened.remove(fd)
        os.close(fd)


def open_file(path, flags=os.O_RDWR):
    "A descriptor or an errno."
    try:
        return keep(os.open(path, flags | os.O_CLOEXEC))
    except OSError as error:
        return errno.errorcode[error.errno]


def group(device, flags=os.O_RDWR):
    return open_file(f"/dev/vfio/{GROUPS[device]}", flags)


def cdev(device):
    return open_file(f"/dev/vfio/devices/vfio{CDEVS[device]}")


def shown(result):
    return "fd" if isinstance(result, int) else result


def container(path="/dev/vfio/vfio"):
    return open_file(path)


def set_container(group, fd):
    return ioctl(group, SET_CONTAINER, put(struct.pack("<i", fd)))


def status(group):
    result = ioctl(group, GET_STATUS, put(struct.pack("<II", 8, 77)))
    return f"{result} flags {words(2)[1]}"


def device_fd(group, name, at=0):
    return keep(ioctl(group, GET_DEVICE_FD, put(name.encode() + b"\0", at)))


def ioas(fd):
    "What IOMMU_VFIO_IOAS says: the id or an errno."
    result = ioctl(fd, VFIO_IOAS, put(struct.pack("<IIHH", 12, 0, 0, 0)))
    return words(2)[1] if result == 0 else result


def destroy(fd, object_id):
    return ioctl(fd, DESTROY, put(struct.pack("<II", 8, object_id)))


def ioas_alloc(fd):
    ioctl(fd, IOAS_ALLOC, put(struct.pack("<III", 12, 0, 0)))
    return words(3)[2]


def bind(fd, iommufd, argsz=24, flags=0):
    "The devid or an errno."
    result = ioctl(fd, BIND, put(struct.pack("<IIiIQ", argsz, flags, iommufd, 0, 0)))
    return f"devid {words(4)[3]}" if result == 0 else result


def attach(fd, pt_id):
    result = ioctl(fd, ATTACH, put(struct.pack("<IIII", 12, 0, pt_id, 0)))
    return f"pt {words(3)[2]}" if result == 0 else result


def info(fd):
    result = ioctl(fd, GET_INFO, put(struct.pack("<IIII", 16, 0, 0, 0)))
    return f"{result} {words(4)[1:]}"


def hot_reset_info(fd, room=8, argsz=None):
    "The head, then what the entries say, sorted: id:bus:devfn."
    head = struct.pack("<III", 12 + 8 * room if argsz is None else argsz, 7, 7)
    result = ioctl(fd, HOT_RESET_INFO, put(head + bytes(64)))
    flags, count = words(3)[1:]
    entries = [struct.unpack_from("<IHBB", pages, 12 + 8 * i) for i in range(min(count, room))]
    if result != 0:
        return f"{result} flags {flags} count {count}"
    listed = " ".join(f"{i:#x}/{s}:{b:02x}:{d:02x}" for i, s, b, d in sorted(entries))
    return f"{result} flags {flags} count {count} {listed}"


def hot_reset(fd, fds, count=None, argsz=None, flags=0):
    count = len(fds) if count is None else count
    argsz = 12 + 4 * count if argsz is None else argsz
    data = struct.pack("<III", argsz, flags, count) + struct.pack(f"<{len(fds)}i", *fds)
    return ioctl(fd, HOT_RESET, put(data))


def vendor(fd):
    try:
        return os.pread(fd, 4, CONFIG).hex()
    except OSError as error:
        return errno.errorcode[error.errno]


def command(fd, value=None):
    if value is not None:
        os.pwrite(fd, struct.pack("<H", value), CONFIG + 4)
    return os.pread(fd, 2, CONFIG + 4).hex()


def all_of(device, path="/dev/vfio/vfio"):
    "group, container, device fd."
    g, c = group(device), container(path)
    set_container(g, c)
    return g, c, device_fd(g, device)


def ask_open():
    for device in (EDU, NVME, NIC0):
        g = group(device)
        say(f"open {device}", shown(g))
        say("again", shown(group(device)))
        close(g)
        g = group(device, os.O_RDONLY)
        say("read-only", shown(g))
        say("status of it", status(g))
        close(g)
    say("write-only", shown(group(EDU, os.O_WRONLY)))


def ask_file():
    g = group(EDU)
    for what, call in (
        ("read", lambda: os.read(g, 8)),
        ("write", lambda: os.write(g, b"12345678")),
        ("lseek", lambda: os.lseek(g, 0, os.SEEK_SET)),
        ("read 0", lambda: os.read(g, 0)),
    ):
        try:
            call()
            result = 0
        except OSError as error:
            result = errno.errorcode[error.errno]
        say(what, result)
    mapped = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, g, 0)
    say("mmap", mapped == 2**64 - 1 and errno.errorcode[ctypes.get_errno()])
    for number in (0x3B63, GET_API_VERSION, CHECK_EXTENSION, SET_IOMMU, GET_INFO, BIND, ATTACH,
                   0x3B80, 0x3B88, 0x3BA0, 0xC0083B67, 0x5401):  # fmt: skip
        say(f"ioctl {number:#x}", ioctl(g, number, PAGES))
    fd = container()
    say("group ioctls of a container", [ioctl(fd, n, PAGES) for n in range(0x3B67, 0x3B6B)])


def ask_status():
    g = group(EDU)
    for argsz in (0, 4, 7, 8, 9, 4096, 0xFFFFFFFF):
        result = ioctl(g, GET_STATUS, put(struct.pack("<III", argsz, 77, 99)))
        say(f"argsz {argsz}", f"{result} {words(3)}")
    for at in (0, 8, 0xFFFF800000000000):
        say(f"pointer {at:#x}", ioctl(g, GET_STATUS, at))
    put(struct.pack("<II", 8, 0), 4096 - 8)
    libc.mprotect(PAGES + 4096, 4096, 0)
    say("at the end of memory", ioctl(g, GET_STATUS, PAGES + 4096 - 8))
    say("beyond", ioctl(g, GET_STATUS, PAGES + 4096 - 4))
    libc.mprotect(PAGES + 4096, 4096, 3)
    put(struct.pack("<II", 8, 77), 4096)
    libc.mprotect(PAGES + 4096, 4096, 1)
    say("read-only memory", ioctl(g, GET_STATUS, PAGES + 4096))
    libc.mprotect(PAGES + 4096, 4096, 3)
    c = container()
    say("before", status(g))
    say("set", set_container(g, c))
    say("with container", status(g))
    d = device_fd(g, EDU)
    say("with a device", status(g))
    say("unset", ioctl(g, UNSET_CONTAINER))
    say("unset, device open", status(g))
    close(d)
    say("unset, device closed", status(g))


def ask_set_container():
    for path in ("/dev/vfio/vfio", "/dev/iommu"):
        g, c = group(EDU), container(path)
        say(f"{path} ioas before", ioas(c))
        say("set", set_container(g, c))
        say("ioas after", ioas(c))
        say("set again", set_container(g, c))
        say("set again to another", set_container(g, container()))
        say("set again, bad fd", set_container(g, -1))
        say("set again, null", set_container(g, open_file("/dev/null")))
        say("unset", ioctl(g, UNSET_CONTAINER, 0xFFFF800000000000))
        say("ioas after unset", ioas(c))
        say("unset again", ioctl(g, UNSET_CONTAINER))
        say("set after unset", set_container(g, c))
        say("ioas", ioas(c))
        say("destroy it", destroy(c, 1))
        say("unset", ioctl(g, UNSET_CONTAINER))
        say("set", set_container(g, c))
        say("ioas anew", ioas(c))
        close(g)
        close(c)
    g = group(EDU)
    for at in (0, 2, 0xFFFF800000000000, 0x7FFFFFFFEFFE):
        say(f"pointer {at:#x}", ioctl(g, SET_CONTAINER, at))
    say("unaligned", ioctl(g, SET_CONTAINER, put(struct.pack("<i", container()), 1)))
    say("unset", ioctl(g, UNSET_CONTAINER))
    for fd in (-1, 9999, -2147483648):
        say(f"fd {fd}", set_container(g, fd))
    for path in ("/dev/null", "/tmp"):
        say(path, set_container(g, open_file(path, os.O_RDONLY)))
    say("itself", set_container(g, g))
    say("another group", set_container(g, group(NVME)))
    say("a cdev", set_container(g, cdev(EDU)))
    say("an eventfd", set_container(g, keep(os.eventfd(0))))
    say("O_PATH", set_container(g, open_file("/dev/iommu", os.O_PATH)))
    say("none yet", status(g))
    c = container("/dev/iommu")
    mine = ioas_alloc(c)
    ioctl(c, VFIO_IOAS, put(struct.pack("<IIHH", 12, mine, 1, 0)))
    say("an ioas of ours", (mine, set_container(g, c), ioas(c)))


def ask_two_groups():
    c = container()
    g, h = group(EDU), group(NVME)
    say("both", (set_container(g, c), set_container(h, c), ioas(c)))
    d, e = device_fd(g, EDU), device_fd(h, NVME)
    say("devices", (shown(d), shown(e)))
    say("the other's device", (shown(device_fd(g, NVME)), shown(device_fd(h, EDU))))
    say("set iommu", (ioctl(c, SET_IOMMU, 3), ioctl(c, SET_IOMMU, 1), ioctl(c, SET_IOMMU, 8)))
    data = struct.pack("<IIQQQ", 32, 3, PAGES, 0x100000, 8192)
    say("map", ioctl(c, MAP_DMA, put(data)))
    ioctl(c, IOMMU_GET_INFO, put(struct.pack("<IIQII", 24, 0, 0, 0, 0)))
    say("page sizes", hex(struct.unpack_from("<Q", pages, 8)[0]))
    close(d)
    close(e)
    say("destroy the ioas", destroy(c, ioas(c)))


def ask_device_fd():
    g, c = group(EDU), container()
    say("no container", shown(device_fd(g, EDU)))
    say("no container, no such name", shown(device_fd(g, "nothing")))
    say("no container, null", ioctl(g, GET_DEVICE_FD, 0))
    set_container(g, c)
    for name in ("", " ", "0000:00:06", "0000:00:06.", "0000:00:06.1", NVME, EDU + "x", "x" + EDU,
                 EDU + "\t", EDU.upper(), "00:06.0", EDU + " x", EDU + " vf_token=",
                 EDU + " vf_token=1", EDU + " vf_token=bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3",
                 EDU + "   vf_token=bd8d9d2b-5a5f-4f5a-a211-f591514ba1fg",
                 EDU + " vf_token=bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3x",
                 EDU + " vf_token=bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3 ",
                 EDU + " vf_token=bd8d9d2b5a5f4f5aa211f591514ba1f3xxxx",
                 EDU + " vf_token=bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"
                       " vf_token=bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"):  # fmt: skip
        say(f"name {name!r}", shown(device_fd(g, name)))
    for name in (EDU + " ", EDU + "   "):
        fd = device_fd(g, name)
        say(f"name {name!r}", shown(fd))
        close(fd)
    for at in (0, 8, 0xFFFF800000000000):
        say(f"pointer {at:#x}", ioctl(g, GET_DEVICE_FD, at))
    for length in (4094, 4095, 4096, 5000):
        name = EDU + " " * (length - len(EDU))
        fd = keep(ioctl(g, GET_DEVICE_FD, put(name.encode() + b"\0")))
        say(f"length {length}", shown(fd))
        close(fd)
    for offset in (0, 1, 5, 8):
        put(EDU.encode() + b" " * 4096 + b"\0", offset)
        say(f"long at offset {offset}", shown(keep(ioctl(g, GET_DEVICE_FD, PAGES + offset))))
    libc.mprotect(PAGES + 4096, 4096, 0)
    for length in (12, 13):
        fd = keep(ioctl(g, GET_DEVICE_FD, put((EDU + "\0").encode()[:length], 4096 - length)))
        say(f"{length} bytes at the end of memory", shown(fd))
        close(fd)
    fd = keep(ioctl(g, GET_DEVICE_FD, put(b" " * 4096)))
    say("a page of spaces at the end of memory", shown(fd))
    libc.mprotect(PAGES + 4096, 4096, 3)
    d = device_fd(g, EDU)
    say("one", shown(d))
    say("close-on-exec", os.get_inheritable(d) is False)
    say("flags", hex(__import__("fcntl").fcntl(d, 3)))
    say("again", shown(device_fd(g, EDU)))


def limited(limit, call):
    "The result of a call that may have no descriptor above the limit."
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ask_no_descriptors():
    g = group(EDU)
    say("no container", limited(3, lambda: device_fd(g, EDU)))
    say("no container, no such name", limited(3, lambda: device_fd(g, "nothing")))
    c = container()
    set_container(g, c)
    say("container", limited(3, lambda: device_fd(g, EDU)))
    say("no such name", limited(3, lambda: device_fd(g, "nothing")))
    destroy(c, ioas(c))
    say("no ioas", limited(3, lambda: device_fd(g, EDU)))
    b = cdev(EDU)
    close(g)
    say("nothing is bound then", bind(b, c))


def ask_device():
    for device in (EDU, NVME, NIC1, TESTDEV):
        g, c, d = all_of(device)
        say(f"{device} info", info(d))
        say("vendor", vendor(d))
        say("command", command(d))
        say("bind", (bind(d, c), bind(d, -1), bind(d, 9999), bind(d, c, 8), bind(d, c, 24, 2)))
        say("bind, tail", ioctl(d, BIND, put(struct.pack("<IIiIQI", 28, 0, c, 0, 0, 1))))
        say("attach", (attach(d, 1), ioctl(d, ATTACH, 0)))
        say("detach", (ioctl(d, DETACH, put(struct.pack("<II", 8, 0))), ioctl(d, DETACH, 8)))
        say("unknown", (ioctl(d, 0x3B63, 0), ioctl(d, 0x3B79, 0), ioctl(d, GET_STATUS, 0)))
        say("reset", ioctl(d, RESET))
        result = ioctl(d, REGION_INFO, put(struct.pack("<IIIIQQ", 32, 0, 7, 0, 0, 0)))
        say("config region", (result, words(4)[1]))
        say("probe of a feature", ioctl(d, FEATURE, put(struct.pack("<II", 8, 0x40003))))
        try:
            result = os.lseek(d, 0, os.SEEK_SET)
        except OSError as error:
            result = errno.errorcode[error.errno]
        say("lseek", result)
        for fd in (d, c, g):
            close(fd)


def ask_several_fds():
    g, c, d = all_of(EDU)
    e = device_fd(g, EDU)
    say("command", (command(d), command(e)))
    say("set through one", (command(d, 6), command(e)))
    eventfd = keep(os.eventfd(0, os.EFD_NONBLOCK))
    data = struct.pack("<IIIIIi", 24, 0x24, 1, 0, 1, eventfd)
    say("irqs through one", ioctl(d, SET_IRQS, put(data)))
    say("intx through the other", ioctl(e, SET_IRQS, put(data[:8] + bytes(4) + data[12:])))
    say("a bar through both", (os.pread(d, 4, 0).hex(), os.pread(e, 4, 0).hex()))
    close(d)
    say("one closed", command(e))
    say("third", shown(f := device_fd(g, EDU)))
    say("third's command", command(f))
    say("devids", destroy(c, 2))
    close(e)
    say("two closed", command(f))
    close(f)
    d = device_fd(g, EDU)
    say("all closed, opened again", (shown(d), command(d)))
    bar = mmap.mmap(d, 4096)
    say("bar mapped", bar[:4].hex() == os.pread(d, 4, 0).hex())
    close(d)
    close(g)
    close(c)
    say("group busy while mapped", shown(group(EDU)))
    bar.close()


def ask_no_ioas():
    g, c = group(EDU), container()
    set_container(g, c)
    say("destroy", destroy(c, ioas(c)))
    say("ioas", ioas(c))
    say("device", shown(device_fd(g, EDU)))
    say("status", status(g))
    own = ioas_alloc(c)
    ioctl(c, VFIO_IOAS, put(struct.pack("<IIHH", 12, own, 1, 0)))
    d = device_fd(g, EDU)
    say("with another", shown(d))
    say("destroy the ioas", destroy(c, own))
    say("clear", ioctl(c, VFIO_IOAS, put(struct.pack("<IIHH", 12, 0, 2, 0))))
    say("second device fd", shown(e := device_fd(g, EDU)))
    close(d)
    close(e)
    say("first again", shown(device_fd(g, EDU)))
    say("destroy now", destroy(c, own))


def ask_reserved():
    g, c = group(EDU), container()
    set_container(g, c)
    data = struct.pack("<IIQQQ", 32, 3, PAGES, 0xFEE00000, 4096)
    say("map where MSIs are", ioctl(c, MAP_DMA, put(data)))
    say("device", shown(device_fd(g, EDU)))
    say("device again", shown(device_fd(g, EDU)))
    say("unmap", ioctl(c, UNMAP_DMA, put(struct.pack("<IIQQ", 24, 0, 0xFEE00000, 4096))))
    say("device now", shown(device_fd(g, EDU)))


def ask_unset_with_device():
    g, c, d = all_of(EDU)
    say("unset", ioctl(g, UNSET_CONTAINER))
    say("device works", (info(d), vendor(d)))
    say("another fd", shown(device_fd(g, EDU)))
    other = container()
    say("set another container", set_container(g, other))
    e = device_fd(g, EDU)
    say("another fd", (shown(e), ioas(other)))
    ours = destroy(c, ioas(c)), destroy(other, ioas(other))
    say("destroy the ioas of both", ours)
    close(d)
    close(e)
    say("first fd in the other", shown(d := device_fd(g, EDU)))
    close(d)


def ask_container_closed():
    g, c, d = all_of(EDU)
    close(c)
    say("works", (info(d), vendor(d), status(g)))
    say("another fd", shown(device_fd(g, EDU)))
    say("unset", ioctl(g, UNSET_CONTAINER))
    say("works", (info(d), vendor(d), status(g)))


def ask_group_closed():
    g, c, d = all_of(EDU)
    close(g)
    say("works", (info(d), vendor(d)))
    g = group(EDU)
    say("open again", shown(g))
    say("status", status(g))
    say("device without container", shown(device_fd(g, EDU)))
    other = container()
    say("set another container", set_container(g, other))
    say("device", shown(e := device_fd(g, EDU)))
    close(g)
    b = cdev(EDU)
    say("bind a cdev to the one", bind(b, c))
    say("bind a cdev to the other", bind(b, other))
    close(d)
    say("bind a cdev, one closed", bind(b, c))
    close(e)
    say("bind a cdev, both closed", bind(b, c))
    say("group", shown(group(EDU)))


def ask_group_of_two():
    g, c = group(NIC0), container()
    set_container(g, c)
    d, e = device_fd(g, NIC0), device_fd(g, NIC1)
    say("both", (shown(d), shown(e)))
    say("vendors", (vendor(d), vendor(e)))
    say("the ioas is used", destroy(c, ioas(c)))
    close(d)
    say("one left", destroy(c, ioas(c)))
    other = container()
    ioctl(g, UNSET_CONTAINER)
    set_container(g, other)
    say("the first in another container", shown(device_fd(g, NIC0)))
    close(g)
    b = cdev(NIC0)
    say("group closed: cdev to another", bind(b, other))
    say("group closed: cdev to the same", bind(b, c))
    say("group", shown(group(NIC0)))
    close(b)
    g = group(NIC0)
    say("cdev closed: group", shown(g))
    say("its status", status(g))
    close(e)
    say("its status, device closed", status(g))


def ask_cdev():
    b, f = cdev(NIC0), container("/dev/iommu")
    g = group(NIC0)
    say("group while a cdev is open", shown(g))
    say("bind while it is open", (bind(b, f), bind(b, -1), bind(b, 9999), bind(b, f, 8)))
    say("bind of a sibling", bind(cdev(NIC1), f))
    say("bind of another group", bind(cdev(EDU), f))
    say("before bind", (info(b), attach(b, 1)))
    close(g)
    say("bind now", bind(b, f))
    say("group", shown(group(NIC0)))
    say("bind again", bind(b, f))
    say("another group", shown(h := group(NVME)))
    say("its status", status(h))
    close(b)
    g = group(NIC0)
    say("group after close", shown(g))
    say("status", status(g))


def ask_cdev_first():
    f = container("/dev/iommu")
    b = cdev(NIC0)
    say("bind", bind(b, f))
    copy = os.dup(b)
    close(b)
    say("group, cdev still there", shown(group(NIC0)))
    os.close(copy)
    say("group, cdev gone", shown(group(NIC0)))


def ask_hot_reset():
    for device in (EDU, NVME, NIC0, BRIDGE_EDU, TESTDEV):
        g, c, d = all_of(device)
        say(f"{device} info", hot_reset_info(d))
        say("argsz", [hot_reset_info(d, 1, argsz) for argsz in (0, 11, 12, 19)])
        say("pointer", ioctl(d, HOT_RESET_INFO, 8))
        say("no groups", hot_reset(d, []))
        say("argsz 8", hot_reset(d, [g], argsz=8))
        say("argsz 12", hot_reset(d, [g], argsz=12))
        say("flags", hot_reset(d, [g], flags=1))
        say("pointer", ioctl(d, HOT_RESET, 8))
        say("the group", hot_reset(d, [g]))
        say("twice the group", hot_reset(d, [g, g]))
        say("many", hot_reset(d, [g] * 9))
        say("not open", hot_reset(d, [9999]))
        say("-1", hot_reset(d, [-1]))
        say("null", hot_reset(d, [open_file("/dev/null")]))
        say("the container", hot_reset(d, [c]))
        say("the device", hot_reset(d, [d]))
        say("another group", hot_reset(d, [h := group(NVME if device != NVME else EDU)]))
        close(h)
        say("not open, in the end", hot_reset(d, [g, 9999]))
        libc.mprotect(PAGES + 4096, 4096, 0)
        put(struct.pack("<III", 16, 0, 1), 4096 - 12)
        say("fds beyond memory", ioctl(d, HOT_RESET, PAGES + 4096 - 12))
        put(struct.pack("<III", 12, 0, 1000000), 4096 - 12)
        say("a million beyond memory", ioctl(d, HOT_RESET, PAGES + 4096 - 12))
        libc.mprotect(PAGES + 4096, 4096, 3)
        say("works", vendor(d))
        for fd in (d, c, g):
            close(fd)


def ask_hot_reset_proof():
    g, c, d = all_of(NIC0)
    ioctl(g, UNSET_CONTAINER)
    say("group without container", hot_reset(d, [g]))
    close(g)
    g = group(NIC0)
    say("group opened again", hot_reset(d, [g]))
    close(g)
    say("no group", hot_reset(d, []))
    f = container("/dev/iommu")
    b = cdev(NIC1)
    say("sibling as a cdev", bind(b, c))
    say("info of the one", hot_reset_info(d))
    say("info of the other", hot_reset_info(b))
    say("resets", (hot_reset(d, []), hot_reset(b, [])))
    close(b)
    b = cdev(NIC1)
    say("sibling as a cdev elsewhere", bind(b, f))


def ask_token():
    token = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"
    g, c = group(IGB), container()
    set_container(g, c)
    for words in ("", f" vf_token={token}", f"  vf_token={token.upper()} ", f" vf_token={token}x",
                  f" vf_token={token}vf_token={token}", f" vf_token={token[:-1]}g",
                  f" vf_token={token[:-1]}", " x"):  # fmt: skip
        fd = device_fd(g, IGB + words)
        say(repr(words), shown(fd))
        close(fd)
    close(g)
    put(bytes.fromhex(token.replace("-", "")), 64)
    for flags, at in ((0, 0), (1, 0), (1, PAGES + 64)):
        b = cdev(IGB)
        result = ioctl(b, BIND, put(struct.pack("<IIiIQ", 24, flags, c, 0, at)))
        say(f"bind with flags {flags}, {'a' if at else 'no'} token", result)
        close(b)


def ask_kill():
    for what in ("group", "container", "device"):
        r, w = os.pipe()
        child = os.fork()
        if not child:
            g, c, d = all_of(NIC0)
            os.write(w, b"!" if isinstance(d, int) else b"?")
            signal.pause()
        os.close(w)
        say("there", os.read(r, 1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(r)
        g, c, d = all_of(NIC0)
        say(f"after SIGKILL, {what}", shown({"group": g, "container": c, "device": d}[what]))
        for fd in (d, c, g):
            close(fd)


def ask_fork():
    g, c, d = all_of(EDU)
    child = os.fork()
    if not child:
        say("child", (info(d), status(g), shown(group(EDU))))
        say("child's own", shown(device_fd(g, EDU)))
        os._exit(0)
    os.waitpid(child, 0)
    say("parent", (info(d), status(g)))
    child = os.fork()
    if not child:
        signal.pause()
    for fd in (d, c, g):
        close(fd)
    say("held by the child", shown(group(EDU)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    say("child gone", shown(group(EDU)))


def ask_nodes():
    for name in ("vfio", *map(str, sorted(set(GROUPS.values())))):
        found = os.stat(f"/dev/vfio/{name}")
        say(name, oct(found.st_mode & 0o777))
    for number in sorted(set(GROUPS.values())):
        path = f"/sys/devices/virtual/vfio/{number}"
        say("uevent", repr(Path(f"{path}/uevent").read_text()))
        dev = Path(f"{path}/dev").read_text().strip()
        say("dev", dev)
        say("char", os.readlink(f"/sys/dev/char/{dev}"))
        say("class", os.readlink(f"/sys/class/vfio/{number}"))
        say("subsystem", os.readlink(f"{path}/subsystem"))


def main():
    global section
    for name, ask in list(globals().items()):
        if name.startswith("ask_") and (len(sys.argv) < 2 or name[4:] in sys.argv[1:]):
            section = name[4:]
            ask()
            while opened:
                close(opened[-1])


if __name__ == "__main__":
    main()
