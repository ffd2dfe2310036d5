"""Asks the kernel's sample driver mtty, or our model of it, all that a client can: a line each.

Run on a Linux with CONFIG_SAMPLE_VFIO_MDEV_MTTY and the devices of the default machine, its answers
are linux_7.3.txt. A line is `section: what it was: result`, a result a number or an errno.
"""

import array
import errno
import fcntl
import mmap
import os
import struct
import sys
from pathlib import Path

UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
PARENT = Path("/sys/devices/virtual/mtty/mtty")
GET_STATUS, SET_CONTAINER, GET_DEVICE_FD = 0x3B67, 0x3B68, 0x3B6A
GET_INFO, REGION_INFO, IRQ_INFO, SET_IRQS, RESET = range(0x3B6B, 0x3B70)
HOT_RESET_INFO, HOT_RESET, IOEVENTFD, FEATURE = 0x3B70, 0x3B71, 0x3B74, 0x3B75
BIND, ATTACH, DETACH, PRECOPY_INFO = 0x3B76, 0x3B77, 0x3B78, 0x3B79
DESTROY, IOAS_ALLOC, IOVA_RANGES, VFIO_IOAS = 0x3B80, 0x3B81, 0x3B84, 0x3B88
HWPT_ALLOC, GET_HW_INFO = 0x3B89, 0x3B8A
GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18
CONFIG = 7 << 40
NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32

section = ""


def say(what, result):
    print(f"{section}: {what}: {result}", flush=True)


def attempt(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]


def ioctl(fd, number, fmt, *values):
    """What the structure is afterwards, or an errno."""
    data = array.array("B", struct.pack(fmt, *values))
    result = attempt(fcntl.ioctl, fd, number, data)
    return result if isinstance(result, str) else struct.unpack(fmt, data.tobytes())


def done(fd, number, fmt, *values):
    result = ioctl(fd, number, fmt, *values)
    return result if isinstance(result, str) else 0


class Serial:
    """The device, bound to a new iommufd."""

    def __init__(self):
        self.iommufd = os.open("/dev/iommu", os.O_RDWR)
        self.name = os.listdir(PARENT / UUID / "vfio-dev")[0]
        self.fd = self.open()

    def open(self):
        return os.open(f"/dev/vfio/devices/{self.name}", os.O_RDWR)

    def bind(self, fd=None, flags=0):
        fd = self.fd if fd is None else fd
        result = ioctl(fd, BIND, "<IIiIQ", 24, flags, self.iommufd, 0, 0)
        return result if isinstance(result, str) else result[3]

    def ioas(self):
        return ioctl(self.iommufd, IOAS_ALLOC, "<III", 12, 0, 0)[2]

    def attach(self, pt_id, flags=0, argsz=12):
        result = ioctl(self.fd, ATTACH, "<IIII", argsz, flags, pt_id, 0)
        return result if isinstance(result, str) else result[2]

    def detach(self, flags=0, argsz=8):
        return done(self.fd, DETACH, "<III", argsz, flags, 0)

    def destroy(self, number):
        return done(self.iommufd, DESTROY, "<II", 8, number)

    def info(self):
        return ioctl(self.fd, GET_INFO, "<IIIIII", 24, *[0x55] * 5)

    def read(self, offset, size):
        data = attempt(os.pread, self.fd, size, offset)
        return data if isinstance(data, str) else data.hex()

    def write(self, offset, *data):
        return attempt(os.pwrite, self.fd, bytes(data), offset)

    def irqs(self, flags, index, start=0, count=1, data=b""):
        words = (20 + len(data), flags, index, start, count)
        return done(self.fd, SET_IRQS, f"<IIIII{len(data)}s", *words, data)

    def eventfd(self, index, fd):
        return self.irqs(EVENTFD | TRIGGER, index, data=struct.pack("<i", fd))

    def feature(self, flags, data=b""):
        """What is behind the head, or an errno."""
        result = ioctl(self.fd, FEATURE, f"<II{len(data)}s", 8 + len(data), flags, data)
        return result if isinstance(result, str) else result[2]

    def state(self):
        return struct.unpack("<Ii", self.feature(GET | 2, bytes(8)))[0]

    def go(self, state):
        """The stream's descriptor, -1 for none, or an errno."""
        data = self.feature(SET | 2, struct.pack("<Ii", state, 77))
        return data if isinstance(data, str) else struct.unpack("<Ii", data)[1]

    def reset(self):
        return attempt(fcntl.ioctl, self.fd, RESET, 0)


def count(eventfd):
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


def ask_attach(serial):
    say("token", serial.bind(flags=1))
    say("bind", (serial.bind(), serial.bind(), serial.bind(serial.open())))
    one, two = serial.ioas(), serial.ioas()
    say("detach", serial.detach())
    say("what is not there, the device, nothing", [serial.attach(n) for n in (99, 1, 0)])
    say("pasid", (serial.attach(one, 1, 16), serial.attach(one, 1, 12), serial.attach(one, 2)))
    say("pasid away", (serial.detach(1, 12), serial.detach(1, 8), serial.detach(2)))
    say("attach, again, elsewhere", (serial.attach(one), serial.attach(one), serial.attach(two)))
    say("then to nothing", serial.attach(99))
    hw_info = ioctl(serial.iommufd, GET_HW_INFO, "<IIIIQIIII", 40, 0, 1, *[0] * 6)
    hwpt = ioctl(serial.iommufd, HWPT_ALLOC, "<IIIIIIIIQII", 48, 0, 1, one, *[0] * 7)
    say("as a device of an IOMMU", (hw_info, hwpt))
    say("destroy", [serial.destroy(number) for number in (one, two, 1)])
    say("detach", (serial.detach(), serial.detach()))
    ranges = ("<IIIIQQ", 32, two, 0, 0, 0, 0)
    say("ranges", ioctl(serial.iommufd, IOVA_RANGES, *ranges))
    edu = os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
    ioctl(edu, BIND, "<IIiI", 16, 0, serial.iommufd, 0)
    hwpt = ioctl(edu, ATTACH, "<III", 12, 0, two)[2]
    say("a page table of another", (hwpt, serial.attach(hwpt), serial.attach(two)))


def ask_info(serial):
    serial.bind()
    irq_info = [(IRQ_INFO, "<IIII", 16, 0x33, index, 0x44) for index in range(7)]
    say("irq before info", ioctl(serial.fd, *irq_info[0]))
    for argsz in (15, 16, 20, 24, 32):
        say(argsz, ioctl(serial.fd, GET_INFO, "<IIIIII", argsz, *[0x55] * 5))
    for index in range(10):
        fields = (32, 0x5555, index, 0x77, 0x66, 0x66)
        say(f"region {index}", ioctl(serial.fd, REGION_INFO, "<IIIIQQ", *fields))
    for index, call in enumerate(irq_info):
        say(f"irq {index}", ioctl(serial.fd, *call))
    others = (HOT_RESET_INFO, HOT_RESET, IOEVENTFD, 0x3BFF)
    say("others", [done(serial.fd, number, "<III", 12, 0, 0) for number in others])
    say("reset", serial.reset())
    say("mmap", attempt(mmap.mmap, serial.fd, 4096))


def ask_config(serial):
    serial.bind()
    say("all", serial.read(CONFIG, 255))
    say("others", [serial.read(index << 40, 4) for index in (3, 6, 8, 9)])
    say("nothing", (serial.read(CONFIG, 0), serial.read(9 << 40, 0)))
    for at in (0x10, 0x14, 0x18, 0x24, 0x30):
        say(hex(at), (serial.write(CONFIG + at, *b"\xff" * 4), serial.read(CONFIG + at, 4)))
        serial.write(CONFIG + at, 0, 0xC0, 0, 0)
        say(hex(at), serial.read(CONFIG + at, 4))
    say("command", (serial.write(CONFIG + 4, 7, 0), serial.read(CONFIG + 4, 4)))
    say("line", (serial.write(CONFIG + 0x3C, 0x2A), serial.read(CONFIG + 0x3C, 2)))


def ask_ports(serial):
    serial.bind()
    for port in (0, 1):
        at = port << 40

        def show(what, *registers, at=at):
            say(f"{what}", [serial.read(at + register, 1) for register in registers])

        show("at first", *range(8))
        say("wider", [serial.read(at + n, size) for n, size in ((0, 4), (4, 4), (0, 8), (1, 3))])
        serial.write(at + 1, 0x0F)
        show("all enabled", 1, 2)
        serial.write(at + 2, 0x01)
        show("fifo", 2, 5)
        serial.write(at, 65)
        show("a byte", 5, 2, 0, 5, 0, 2)
        for byte in range(15):
            serial.write(at, 65 + byte)
        show("fifteen", 5, 2, 0, 0, 5)
        for byte in range(5):
            serial.write(at, 97 + byte)
        show("too many", 5, 2, 0, 0, 5)
        serial.write(at + 2, 0x07)
        show("cleared", 5, 2)
        serial.write(at + 3, 0x83), serial.write(at, 1), serial.write(at + 1, 2)
        show("divisor", 0, 1, 3)
        serial.write(at + 3, 0x03)
        for value in (0x0B, 0x23, 0x20):
            serial.write(at + 4, value)
            show(f"modem {value:#x}", 4, 6, 2)
        serial.write(at + 7, 0x5A)
        serial.write(at + 2, 0x06)
        serial.write(at, *b"xyz")
        show("without a fifo", 7, 5, 6, 0, 0)
        serial.write(at + 2, 0x07)
        say("four at once", (serial.write(at, *b"abcd"), serial.read(at, 1), serial.read(at, 1)))


def ask_irqs(serial):
    serial.bind()
    serial.info()
    first, second = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    for index in range(6):
        off = [serial.irqs(flags, index) for flags in (NONE | TRIGGER, NONE | MASK)]
        say(f"{index} off", (off, serial.irqs(NONE | TRIGGER, index, 0, 0)))
        say(f"{index} on", (serial.eventfd(index, first), serial.eventfd(index, second)))
        for flags in (TRIGGER, TRIGGER, MASK, UNMASK, TRIGGER):
            result = serial.irqs(NONE | flags, index)
            say(f"{index} none {flags}", (result, count(first), count(second)))
        for flags, byte in ((UNMASK, 0), (TRIGGER, 1), (UNMASK, 1), (TRIGGER, 0), (TRIGGER, 1)):
            result = serial.irqs(BOOL | flags, index, data=bytes([byte]))
            say(f"{index} bool {flags} {byte}", (result, count(second)))
        fd = struct.pack("<i", first)
        wrong = [serial.irqs(EVENTFD | flags, index, data=fd) for flags in (MASK, UNMASK)]
        wrong += [serial.irqs(NONE | flags, index) for flags in (MASK | TRIGGER, 0, 64)]
        say(f"{index} wrong", wrong)
        places = ((0, 2), (1, 1), (0, 5), (0, 6), (5, 1))
        say(f"{index} place", [serial.irqs(NONE | TRIGGER, index, *place) for place in places])
        say(f"{index} fd", [serial.eventfd(index, fd) for fd in (999, serial.iommufd, -2, -1)])
        say(f"{index} off", serial.irqs(NONE | TRIGGER, index, 0, 0))
    say("both", (serial.eventfd(0, first), serial.eventfd(1, second)))
    say("the other", (serial.irqs(NONE | TRIGGER, 0, 0, 0), serial.eventfd(1, second)))
    serial.write(2, 1), serial.write(1, 2)
    say("empty", count(second))
    serial.write(1, 1), serial.write(0, 65)
    say("received", count(second))
    serial.irqs(NONE | TRIGGER, 1, 0, 0), serial.eventfd(0, first)
    serial.write(2, 3), serial.write(0, 65)
    say("line", count(first))
    serial.write(2, 3), serial.write(0, 65)
    say("masked", count(first))
    serial.irqs(NONE | UNMASK, 0)
    say("unmasked", count(first))
    serial.write(2, 3), serial.write(0, 65)
    say("again", count(first))


def ask_features(serial):
    serial.bind()
    for index in range(15):
        results = [serial.feature(PROBE | asked | index) for asked in (0, GET, SET, GET | SET)]
        say(index, [0 if result == b"" else result for result in results])
    say("flags", serial.feature(GET | 1, bytes(8)))


def ask_migration(serial):
    serial.bind()
    for start in range(1, 8):
        for target in range(9):
            serial.reset()
            before, stream = serial.go(start), serial.go(target)
            what = stream if isinstance(stream, str) else "stream" if stream >= 0 else 0
            say(f"{start} to {target}", (what, serial.state()))
            for fd in (before, stream):
                if isinstance(fd, int) and fd >= 0:
                    os.close(fd)
    serial.reset()
    stream = serial.go(6)
    info = (PRECOPY_INFO, "<IIQQ")
    say("info", [ioctl(stream, *info, size, 0x55, 1, 1)[:2] for size in (24, 23)])
    say("v2", (serial.feature(SET | 12), ioctl(stream, *info, 24, 0x55, 1, 1)[:2]))
    calls = (os.pread, stream, 1, 0), (os.write, stream, b"x"), (os.lseek, stream, 0, 1)
    say("not so", [attempt(*call) for call in calls])
    say("other ioctl", done(stream, GET_INFO, "<IIII", 16, 0, 0, 0))
    say("stop and copy", serial.go(3))
    data = os.read(stream, 4096)
    say("end", (attempt(os.read, stream, 1), done(stream, *info, 24, 0, 0, 0)))
    say("stop", (serial.go(1), attempt(os.read, stream, 1)))
    into = serial.go(4)
    say("not so", (attempt(os.pwrite, into, b"x", 0), attempt(os.read, into, 1)))
    say("no ioctl", done(into, *info, 24, 0, 0, 0))
    say("nothing written", (serial.go(1), serial.state()))
    say("whole", (attempt(os.write, into, data) == len(data), serial.go(1), serial.state()))
    say("ended", attempt(os.write, into, b"x"))
    again = serial.open()
    os.close(serial.fd)
    serial.fd = again
    say("the next client", (serial.bind(), serial.state(), serial.go(2)))


def ask_carried(serial):
    """What was in the registers is there again."""
    serial.bind()
    serial.write(7, 0x12), serial.write(2, 7), serial.write(0, *b"m"), serial.write(0, *b"q")
    serial.write((1 << 40) + 3, 0x83), serial.write(1 << 40, 0x99)
    stream = serial.go(3)
    data = os.read(stream, 4096)
    serial.go(2)
    serial.write(7, 0x77), serial.write(2, 7), serial.write((1 << 40) + 3, 0x80)
    into = serial.go(4)
    os.write(into, data)
    say("running", serial.go(2))
    say("registers", [serial.read(at, 1) for at in (7, 0, 5, 0, 5, 1 << 40)])


def ask_logging(serial):
    serial.bind()

    def start(page_size, *ranges):
        data = b"".join(struct.pack("<QQ", *pair) for pair in ranges)
        memory = mmap.mmap(-1, 65536)
        memory[: len(data)] = data
        view = memoryview(memory)
        address = array_address(view)
        request = struct.pack("<QIIQ", page_size, len(ranges), 0, address)
        result = serial.feature(SET | 6, request)
        serial.feature(SET | 7)
        return result if isinstance(result, str) else 0

    page, end = 4096, 1 << 64
    wrong = ((page,), (page, *[(0, page)] * 257), (page, (0, page), (0, page)), (page, (1, page)),
             (0, (page, page)), (page, (end - page, page)))  # fmt: skip
    say("wrong", [start(*request) for request in wrong])
    say("right", [start(page, (0, page)), start(0, (0, 0))])
    say("bad address", serial.feature(SET | 6, struct.pack("<QIIQ", page, 1, 0, 8)))
    zeros = bytearray(16)
    start_on = struct.pack("<QIIQ", page, 1, 0, array_address(memoryview(zeros)))
    say("on", serial.feature(SET | 6, start_on) == start_on)
    reports = ((0, page, page), (0, 0, page), (0, page, 2048), (0, page, 3 * page),
               (end - page, page, page), (end - page, page - 1, page))  # fmt: skip
    results = [serial.feature(GET | 8, struct.pack("<QQQQ", *report, 8)) for report in reports]
    say("report", [result if isinstance(result, str) else 0 for result in results])
    say("off", (serial.feature(SET | 7), serial.feature(SET | 7)))


def array_address(view):
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def ask_group(serial):
    number = os.path.basename(os.readlink(PARENT / UUID / "iommu_group"))
    group = os.open(f"/dev/vfio/{number}", os.O_RDWR)
    say("again", attempt(os.open, f"/dev/vfio/{number}", os.O_RDWR))
    say("cdev", serial.bind())
    say("status", ioctl(group, GET_STATUS, "<II", 8, 0))
    say("container", done(group, SET_CONTAINER, "<i", serial.iommufd))
    ioctl(serial.iommufd, VFIO_IOAS, "<IIHH", 12, serial.ioas(), 1, 0)
    say("status", ioctl(group, GET_STATUS, "<II", 8, 0))
    names = UUID, f"{UUID} vf_token={UUID}", f"{UUID} ", UUID[:-1]
    strings = [array.array("B", name.encode() + b"\0") for name in names]
    fds = [attempt(fcntl.ioctl, group, GET_DEVICE_FD, string) for string in strings]
    say("device", [fd if isinstance(fd, str) else "fd" for fd in fds])
    serial.fd = fds[0]
    say("info", serial.info())
    say("attach, detach", (serial.attach(1), serial.detach()))


def ask_sysfs(serial):
    links = ("driver", "mdev_type", "subsystem")
    say("links", [os.readlink(PARENT / UUID / name) for name in links])
    texts = ("uevent", "vendor/sample_mdev_dev")
    say("texts", [(PARENT / UUID / name).read_text() for name in texts])
    kind = PARENT / "mdev_supported_types/mtty-2"
    say("type", [(kind / name).read_text() for name in ("name", "device_api")])
    say("there", [os.readlink(f"/sys/bus/mdev/{at}/{UUID}") for at in ("devices", "drivers/mtty")])
    group = PARENT / UUID / "iommu_group"
    texts = [(group / name).read_text() for name in ("name", "type", "reserved_regions")]
    say("group", (os.readlink(group), texts, os.listdir(group / "devices")))
    say("cdev", (PARENT / UUID / "vfio-dev" / serial.name / "uevent").read_text().split())


def main(only):
    global section
    if not (PARENT / UUID).exists():
        (PARENT / "mdev_supported_types/mtty-2/create").write_text(UUID)
    for name in only or [name[4:] for name in globals() if name.startswith("ask_")]:
        section = name
        child = os.fork()
        if not child:
            globals()[f"ask_{name}"](Serial())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, name


if __name__ == "__main__":
    main(sys.argv[1:])
