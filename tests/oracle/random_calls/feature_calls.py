"""Calls to devices whose structures have tails: features, interrupts, resets, ioeventfds.

With sizes, ranges and descriptors of all kinds, mostly of bound devices.
"""

import ctypes
import os
import struct

import config_calls
import device_calls
import iommufd_calls
from device_calls import ADDRESSES, CONFIG, DMA_BUF, GET, GROUPS, PROBE, SET
from world import DATA, FENCE, PAGE, U64_MAX, libc, outcome, word

VF_TOKEN = 0
LOW_POWERS = 3, 4
ANY_SIZE = (0, 4, 7, 8, 9, 12, 16, 24, 25, 40, 64, 4096)


def odd_fd(world):
    """Of all kinds that there are."""
    return world.random.of(
        *(*world.eventfds, *world.eventfds, -1, -1, -2, 999, world.null, world.memfd),
        *world.odd,
        *(*world.iommufds[:1], *list(world.devices.values())[:2]),
    )


def with_device(call):
    def made(world):
        if not world.odd:
            world.odd = [*os.pipe(), os.open("/dev", os.O_RDONLY | os.O_DIRECTORY)]
            world.odd.append(os.eventfd(3, os.EFD_NONBLOCK | os.EFD_SEMAPHORE))
        config_calls.open_all(world)
        call(world, world.devices[world.random(len(ADDRESSES))])

    return made


def feature(world, fd):
    random = world.random
    number = random.of(random(24), random(24), 0xFFFF)
    what = random.of(GET, SET, PROBE, GET | PROBE, SET | PROBE, GET | SET, GET | SET | PROBE, 0)
    if random.percent(5):
        what |= random.of(1 << 19, 1 << 31)
    argsz = random.of(*ANY_SIZE)
    if number == DMA_BUF or (number in LOW_POWERS and what & SET and not what & PROBE):
        return  # the one has a call of its own, the other sleeps
    data = struct.pack("<II", argsz, number | what) + bytes(random(3) for _ in range(56))
    world.ioctl("FEATURE", fd, 0x3B75, data, f"{number | what:#x} {argsz}")


def dma_buf(world, fd):
    """A file of ranges of a BAR; what its file says of itself."""
    random = world.random
    flags = random.of(GET, GET, GET, GET, SET, GET | PROBE, GET | SET)
    region, n = random.of(0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9), random.of(1, 1, 1, 2, 3, 0, 1 << 30)
    open_flags = random.of(os.O_RDWR, os.O_RDWR | os.O_CLOEXEC, os.O_RDONLY, 0x800, 0xFFFFFFFF)
    ranges = b""
    for _ in range(min(n, 3)):
        start = random.of(0, 0, PAGE, 2 * PAGE, 100, 1 << 20, U64_MAX - PAGE + 1)
        ranges += struct.pack("<QQ", start, random.of(PAGE, PAGE, 2 * PAGE, 0, 100, 1 << 40))
    body = struct.pack("<IIII", region, open_flags, world.bad(0), n) + ranges
    argsz = random.of(*[8 + len(body)] * 6, 8 + len(body) - 1, 8 + len(body) + 8, 24, 8)
    data = struct.pack("<II", argsz, DMA_BUF | flags) + body + bytes(8)
    result, _ = world.ioctl("FEATURE", fd, 0x3B75, data, f"dma-buf {region} {n} {argsz}")
    if isinstance(result, int) and result > 0:
        length = os.lseek(result, 0, os.SEEK_END)
        world.say("dma-buf", result, length)
        os.close(result)


def set_irqs(world, fd):
    random = world.random
    index, start = random.of(0, 1, 2, 3, 4, 0, 1, 2, 5, 1 << 31), random.of(0, 0, 0, 0, 1, 2, 4, 24)
    count = random.of(0, 1, 1, 1, 2, 3, 5, 8, 25, 0xFFFFFFFF)
    kind, action = random.of(1, 2, 4, 4, 4), random.of(8, 16, 32, 32, 32)
    flags = kind | action
    if random.percent(6):
        flags = random.of(0, 0x25, 0x2C, 0x3C, 0x40, 0x23, 0x26, 0x80000024)
    n = min(count, 25)
    data = b""
    if flags & 2:
        data = bytes(random.of(0, 1, 255) for _ in range(n))
    if flags & 4:
        data = struct.pack(f"<{n}i", *(odd_fd(world) for _ in range(n)))
    argsz = 20 + len(data) + random.of(0, 0, 0, 0, 0, 0, 0, -1, -4, 1, 4, 4096)
    body = struct.pack("<IIIII", argsz, flags, index, start, count) + data
    world.ioctl("SET_IRQS", fd, 0x3B6E, body + bytes(8), f"{flags:#x} {index} {start} {count}")
    world.say("signalled", *world.fired())


def ring(world, fd):
    config_calls.ring(world, fd)


def switch_off(world, fd):
    """So that another kind can be switched on."""
    index = world.random.of(0, 1, 2)
    data = struct.pack("<IIIII", 20, 0x21, index, 0, 0)
    world.ioctl("SET_IRQS", fd, 0x3B6E, data, f"off {index}")


def ioeventfd(world, fd):
    """Tied, taken back, tied twice, to places of all regions."""
    random = world.random
    region = random.of(0, 0, 0, 1, 2, 3, 4, 6, 7, 8, 9)
    offset = (region << 40) + random.of(0, 0, 4, 8, 2, 1, 0x10, 0x2000, 0x3FF8, 0x1FFFC, 1 << 20)
    size = random.of(1, 2, 4, 4, 4, 8, 0, 3, 16, 0x80000000, 0x84)
    eventfd = random.of(*world.ioeventfds, world.ioeventfds[0], -1, -1, odd_fd(world))
    argsz = random.of(32, 32, 32, 32, 31, 40, 0)
    values = argsz, size, offset, random.of(0, 1), eventfd, world.bad(0, 2) & 0x7FFFFFFF
    data = struct.pack("<IIQQii", *values) + bytes(8)
    world.ioctl("IOEVENTFD", fd, 0x3B74, data, f"{offset:#x} {size} {eventfd}")


def reset_info(world, fd):
    random = world.random
    argsz = random.of(0, 8, 11, 12, 13, 20, 24, 36, 48, 60, 200)
    data = struct.pack("<III", argsz, world.bad(0), random.of(0, 5)) + b"\xee" * 200
    world.ioctl("GET_PCI_HOT_RESET_INFO", fd, 0x3B70, data, argsz)


def hot_reset(world, fd):
    random = world.random
    n = random.of(0, 0, 0, 1, 2, 3)
    fds = [odd_fd(world) for _ in range(n)]
    count = random.of(n, n, n, n + 1, 0xFFFFFFFF, 100)
    argsz = random.of(*[12 + 4 * n] * 6, 12, 11, 8, 200)
    data = struct.pack(f"<III{n}i", argsz, world.bad(0), count, *fds) + bytes(8)
    world.ioctl("PCI_HOT_RESET", fd, 0x3B71, data, f"{argsz} {count}")


def bind_again(world, fd):
    """Of a bound device, or of one that is open a second time; with a token, too."""
    random = world.random
    ctypes.memmove(DATA, bytes(random(2) for _ in range(16)), 16)
    token = random.of(DATA, 0, FENCE - 8)
    argsz, flags = random.of(32, 32, 24, 16, 15, 40), random.of(0, 1, 1, 1, 2)
    data = struct.pack("<IIiIQ", argsz, flags, random.of(*world.iommufds, -1), 0, token) + bytes(16)
    if random.percent(50):
        world.ioctl("BIND_IOMMUFD", fd, 0x3B76, data, "again")
        return
    number = random(len(ADDRESSES))
    other = os.open(f"/dev/vfio/devices/vfio{number}", os.O_RDWR)
    world.ioctl("BIND_IOMMUFD", other, 0x3B76, data, f"of {number}")
    world.ioctl("GET_INFO", other, 0x3B6B, struct.pack("<I", 24) + bytes(20), "unbound")
    result = libc.pread(other, DATA, 4, CONFIG)
    world.say("pread", other, outcome(result))
    os.close(other)


def group_while_bound(world, fd):
    number = world.random.of(*GROUPS)
    try:
        os.close(os.open(f"/dev/vfio/{number}", os.O_RDWR))
        world.say("open of group", number)
    except OSError as error:
        world.say("open of group", number, error.strerror)


def attach_to(world, fd):
    iommufd = world.bound[fd]
    ids = world.owned.get(iommufd, {}).get("ioas", [])
    if not ids:
        world.current = iommufd
        result, cmd = world.sized("IOAS_ALLOC", iommufd, 0x3B81, "II", 0, 0)
        if result == 0:
            world.learn("ioas", word(cmd, 8))
        return
    if world.random.percent(70):
        pasid, flags = world.random.of(0, 0, 1, 5), world.random.of(0, 0, 0, 1)
        values = 16, flags, world.random.of(*ids, 99), pasid
        world.ioctl("ATTACH_IOMMUFD_PT", fd, 0x3B77, struct.pack("<IIII", *values))
    else:
        world.ioctl("DETACH_IOMMUFD_PT", fd, 0x3B78, struct.pack("<II", 8, 0))


CALLS = {
    with_device(call): weight
    for call, weight in {
        feature: 12,
        dma_buf: 8,
        set_irqs: 20,
        ring: 5,
        switch_off: 8,
        ioeventfd: 10,
        reset_info: 3,
        hot_reset: 4,
        bind_again: 4,
        group_while_bound: 1,
        attach_to: 3,
        config_calls.set_command: 3,
        config_calls.set_power: 2,
        config_calls.reset: 2,
        config_calls.map_region: 4,
        config_calls.use_region: 4,
        config_calls.close: 2,
    }.items()
} | {iommufd_calls.poll: 1, device_calls.get_info: 3}
