"""Calls to devices, opened by themselves or through their groups, of the default machine."""

import ctypes
import errno
import os
import struct

from world import DATA, PAGE, PRIVATE, RW, SHARED, U64_MAX, libc, outcome, word

ADDRESSES = (
    "0000:00:06.0", "0000:01:00.0", "0000:02:00.0", "0000:02:00.1", "0000:04:01.0", "0000:04:02.0",
    "0000:05:00.0",
)  # fmt: skip
GROUPS = {5: [0], 9: [1], 10: [2, 3], 11: [4, 5], 12: [6]}
CONFIG = 7 << 40
GET, SET, PROBE = 1 << 16, 2 << 16, 1 << 18
LOW_POWER_ENTRY, LOW_POWER_ENTRY_WITH_WAKEUP, LOW_POWER_EXIT, DMA_BUF = 3, 4, 5, 11


def device(world):
    """Mostly one that is bound."""
    if world.random.percent(2):
        return world.any_fd()
    every = list(world.devices.values())
    bound = [fd for fd in every if fd in world.bound]
    if bound and world.random.percent(80):
        return world.random.of(*bound)
    return world.random.of(*every) if every else -1


def close_device(world, key):
    fd = world.devices.pop(key)
    world.bound.pop(fd, None)
    os.close(fd)
    return fd


def open_device(world):
    number, key = 0, None
    number = world.random(len(ADDRESSES))
    key = (number, int(world.random.percent(15)))
    if key in world.devices:
        if world.random.percent(15):
            world.say("close of device", *key, close_device(world, key))
        return
    try:
        world.devices[key] = os.open(f"/dev/vfio/devices/vfio{number}", os.O_RDWR)
        world.say("open of device", *key, world.devices[key])
    except OSError as error:
        world.say("open of device", *key, errno.errorcode[error.errno])


def group(world):
    random, number = world.random, world.random.of(*GROUPS)
    if number not in world.groups:
        try:
            world.groups[number] = os.open(f"/dev/vfio/{number}", os.O_RDWR)
            world.say("open of group", number, world.groups[number])
        except OSError as error:
            world.say("open of group", number, errno.errorcode[error.errno])
        return
    fd, case = world.groups[number], random(10)
    if case < 2:
        data = struct.pack("<II", random.of(8, 8, 8, 4, 16), world.bad(0))
        world.ioctl("GROUP_GET_STATUS", fd, 0x3B67, data)
    elif case < 4:
        world.ioctl("GROUP_SET_CONTAINER", fd, 0x3B68, struct.pack("<i", world.iommufd()))
    elif case == 4:
        world.say("GROUP_UNSET_CONTAINER", fd, outcome(libc.ioctl(fd, 0x3B69, 0)))
    elif case == 5:
        os.close(world.groups.pop(number))
        world.say("close of group", number)
    else:
        get_device_fd(world, number)


def get_device_fd(world, group_number):
    random, number = world.random, world.random.of(*GROUPS[group_number])
    name = ADDRESSES[number]
    if random.percent(5):
        name = random.of("x", "0000:00:00.0", random.of(*ADDRESSES))
    ctypes.memmove(DATA, name.encode() + b"\0", len(name) + 1)
    fd = outcome(libc.ioctl(world.groups[group_number], 0x3B6A, DATA))
    world.say("GROUP_GET_DEVICE_FD", group_number, name, fd)
    if isinstance(fd, int):
        key = (number, 2 + random(2))
        if key in world.devices:
            close_device(world, key)
        world.devices[key] = fd
        world.bound[fd] = world.iommufds[0]


def bind(world):
    random = world.random
    argsz, flags = random.of(24, 24, 24, 24, 16, 20, 12, 32), random.of(0, 0, 0, 0, 0, 1, 2)
    data = struct.pack("<IIiIQ", argsz, flags, world.iommufd(), 0, random.of(0, DATA)) + bytes(8)
    unbound = [fd for fd in world.devices.values() if fd not in world.bound]
    fd = random.of(*unbound) if unbound and random.percent(80) else device(world)
    result, cmd = world.ioctl("BIND_IOMMUFD", fd, 0x3B76, data[: max(argsz, 24)])
    if result == 0:
        world.bound[fd] = world.current
        world.learn("device", word(cmd, 12))


def attach(world):
    random, fd = world.random, device(world)
    iommufd = world.bound.get(fd, -1)
    argsz, flags = random.of(12, 12, 12, 12, 16, 8, 20), random.of(0, 0, 0, 0, 0, 0, 0, 1, 2)
    values = argsz, flags, world.id("ioas", "hwpt", of=iommufd), random.of(0, 1)
    result, cmd = world.ioctl("ATTACH_IOMMUFD_PT", fd, 0x3B77, struct.pack("<IIII", *values))
    if result == 0 and iommufd >= 0:
        world.learn("hwpt", word(cmd, 8), of=iommufd)


def detach(world):
    random, fd = world.random, device(world)
    values = random.of(8, 8, 8, 12, 4), random.of(0, 0, 0, 0, 1, 2), random.of(0, 1)
    world.ioctl("DETACH_IOMMUFD_PT", fd, 0x3B78, struct.pack("<III", *values))


def hwpt_alloc(world):
    random, fd = world.random, world.iommufd()
    flags, dev_id = random.of(0, 0, 0, 0, 1, 2, 4, 8, 5, 16), world.id("device")
    pt_id = world.id("ioas", "hwpt", "viommu") if random.percent(30) else world.id("ioas")
    kind, length = random.of(0, 0, 0, 1, 2, 3), random.of(0, 0, 0, 8, 16, 24)
    values = flags, dev_id, pt_id, 0, world.bad(0, 2), kind, length, random.of(0, DATA)
    more = world.id("fault"), world.bad(0, 2)
    result, cmd = world.sized("HWPT_ALLOC", fd, 0x3B89, "IIIIIIIQII", *values, *more)
    if result == 0:
        world.learn("hwpt", word(cmd, 16))


def viommu(world):
    """What needs hardware that is not there."""
    random, fd, case = world.random, world.iommufd(), world.random(4)
    if case == 0:
        values = world.bad(0), random.of(0, 1, 2, 3), world.id("device"), world.id("hwpt"), 0, 0, 0
        world.sized("VIOMMU_ALLOC", fd, 0x3B90, "IIIIIIIQ", *values, 0)
    elif case == 1:
        values = world.id("viommu"), world.id("device"), 0, random.of(0, 1, 2)
        world.sized("VDEVICE_ALLOC", fd, 0x3B91, "IIIQ", *values)
    elif case == 2:
        values = world.bad(0), world.id("viommu"), random.of(0, 1, 2), random.of(0, 1, 8)
        world.sized("VEVENTQ_ALLOC", fd, 0x3B93, "IIIIIII", *values, 0, 0, world.bad(0, 2))
    else:
        values = world.bad(0), world.id("viommu"), random.of(0, 1, 2), 0, 0
        world.sized("HW_QUEUE_ALLOC", fd, 0x3B94, "IIIIIQQ", *values, world.iova(), world.length())


def get_info(world):
    random, fd, case = world.random, device(world), world.random(3)
    if case == 0:
        data = struct.pack("<I", random.of(16, 24, 20, 12, 8, 32, 200))
        data += bytes([random.of(0, 255)]) * 200
        world.ioctl("GET_INFO", fd, 0x3B6B, data)
    elif case == 1:
        values = random.of(32, 32, 48, 40, 28, 64, 200), random.of(0, 7), random(11), 0, 0, 0
        data = struct.pack("<IIIIQQ", *values) + bytes(200)
        world.ioctl("GET_REGION_INFO", fd, 0x3B6C, data, values[2])
    else:
        values = random.of(16, 16, 12, 20), random.of(0, 3), random(7), 0
        world.ioctl("GET_IRQ_INFO", fd, 0x3B6D, struct.pack("<IIII", *values), values[2])


def set_irqs(world):
    random, fd = world.random, device(world)
    index = random.of(0, 1, 2, 3, 4, 0, 1, 2, 5)
    start, count = random.of(0, 0, 0, 0, 1, 2, 5, 100), random.of(0, 1, 1, 1, 2, 3, 8, 0xFFFFFFFF)
    flags = random.of(1, 2, 4) | random.of(8, 16, 32, 32, 32)
    if random.percent(5):
        flags = random.of(0, 0x25, 0x2C, 0x3C, 0x40, 1 << 20)
    data, n = b"", min(count, 8)
    if flags & 7 == 2:
        data = bytes(random.of(0, 1, 1) for _ in range(n))
    if flags & 7 == 4:
        fds = [random.of(*world.eventfds * 2, -1, -1, -2, world.any_fd()) for _ in range(n)]
        data = struct.pack(f"<{n}i", *fds)
    argsz = max(20 + len(data) + random.of(0, 0, 0, 0, 0, 0, -1, 4, -20), 0)
    data = struct.pack("<IIIII", argsz, flags, index, start, count) + data + bytes(8)
    world.ioctl("SET_IRQS", fd, 0x3B6E, data, f"{flags:#x} of {index}")
    world.say("signalled", *world.fired())


def reset(world):
    random, fd, case = world.random, device(world), world.random(5)
    if case == 0:
        world.say("RESET", fd, outcome(libc.ioctl(fd, 0x3B6F, 0)))
    elif case < 3:
        data = struct.pack("<III", random.of(12, 12, 8, 20, 100), world.bad(0), 0) + bytes(200)
        world.ioctl("GET_PCI_HOT_RESET_INFO", fd, 0x3B70, data)
    else:
        n = random.of(0, 0, 1, 2)
        groups = list(world.groups.values()) or [-1]
        fds = [random.of(*groups, world.any_fd()) for _ in range(n)]
        values = random.of(12, 12, 12, 8, 20), world.bad(0), n, *fds
        data = struct.pack(f"<III{n}i", *values) + bytes(8)
        world.ioctl("PCI_HOT_RESET", fd, 0x3B71, data)


def feature(world):
    random, fd, number = world.random, device(world), world.random(15)
    what = random.of(GET, SET, GET | SET, 0) | random.of(0, 0, PROBE)
    if number == DMA_BUF:
        what |= PROBE
    if random.percent(3):
        what |= random.of(1 << 19, 1 << 31)
    argsz, tail = random.of(8, 8, 16, 24, 40, 4), bytes(40)
    sleeps = number in (LOW_POWER_ENTRY, LOW_POWER_ENTRY_WITH_WAKEUP)
    if sleeps and what & SET and not what & PROBE:
        argsz, tail = random.of(8, 16, 12), bytes([random.of(0, 0, 1)]) + bytes(39)
    data = struct.pack("<II", argsz, number | what) + tail
    world.ioctl("FEATURE", fd, 0x3B75, data, f"{number | what:#x}")
    if sleeps and random.percent(70):
        world.ioctl("FEATURE", fd, 0x3B75, struct.pack("<II", 8, LOW_POWER_EXIT | SET), "exit")


def ioeventfd(world):
    random, fd = world.random, device(world)
    places = (random.of(0, 4, 2, 0x100), CONFIG + 4, 1 << 40, (2 << 40) + 8, U64_MAX)
    values = random.of(32, 32, 32, 28, 40), random.of(1, 2, 4, 8, 3, 0, 16), random.of(*places)
    eventfd = random.of(*world.ioeventfds, -1, world.any_fd())
    more = random.of(0, 1), eventfd, world.bad(0, 2) & 0x7FFFFFFF
    world.ioctl("IOEVENTFD", fd, 0x3B74, struct.pack("<IIQQii", *values, *more) + bytes(8))


def read_region(world):
    """What registers hold is the model's business: bytes are told of config space only."""
    random, fd = world.random, device(world)
    region = random.of(7, 7, 7, 0, 1, 2, 6, 8, 9, 3, 4, 5)
    size = random.of(0, 1, 2, 4, 8, 3, 16, 256, 5, 4, 4)
    named = (0, 4, 6, 0x10, 0x14, 0x30, 0x34, 0x3C, 0x3D, 0x40, 0xFC, 0xFE, 0x100, 0xFFC, 0xFFF)
    offset = random.of(*named, 0x1000, random(256), 1 << 20, 0x3FFC, 0x1FFFF)
    ctypes.memset(DATA, 0xEE, size)
    result = outcome(libc.pread(fd, DATA, size, (region << 40) + offset))
    got = ctypes.string_at(DATA, size).hex() if region == 7 else ""
    world.say("pread", fd, region, hex(offset), size, result, got)


def write_config(world):
    random, fd = world.random, device(world)
    offset = random.of(4, 5, 6, 0x10, 0x14, 0x18, 0x30, 0x3C, random(64))
    size = min(random.of(0, 1, 2, 4, 8, 3, 16, 5, 4), 64 - offset)
    data = bytes(random(256) if random.percent(50) else random.of(0, 255) for _ in range(size))
    ctypes.memmove(DATA, data, size)
    result = outcome(libc.pwrite(fd, DATA, size, CONFIG + offset))
    world.say("pwrite", fd, hex(offset), data.hex(), result)
    if random.percent(60):  # so that the device does not stay off
        ctypes.memmove(DATA, b"\x07\x00", 2)
        world.say("pwrite", fd, "command", outcome(libc.pwrite(fd, DATA, 2, CONFIG + 4)))


def map_region(world):
    random, fd, region = world.random, device(world), world.random.of(0, 0, 0, 1, 2, 3, 6, 7, 8, 9)
    length = PAGE * random.of(1, 1, 1, 4, 32, 1024)
    offset = random.of(0, 0, 0, PAGE, PAGE * 31, 1 << 20)
    prot, flags = random.of(1, RW, RW, 2, 7, 0), random.of(SHARED, SHARED, SHARED, PRIVATE)
    address = libc.mmap(None, length, prot, flags, fd, (region << 40) + offset)
    if address in (None, U64_MAX):
        result = errno.errorcode[ctypes.get_errno()]
    else:
        libc.munmap(address, length)
        result = "mapped"
    world.say("mmap", fd, region, hex(offset), length, prot, flags, result)


CALLS = {
    open_device: 10,
    bind: 12,
    attach: 10,
    detach: 4,
    hwpt_alloc: 6,
    viommu: 2,
    get_info: 6,
    set_irqs: 14,
    reset: 5,
    feature: 6,
    ioeventfd: 4,
    read_region: 11,
    write_config: 3,
    map_region: 5,
}
GROUP_CALLS = {group: 12}
