"""Calls to configuration space, and what hangs on it: power, resets, interrupts, BARs.

All devices are opened and bound; after each write, the words of configuration space that are
others than before are told. What registers of a BAR hold is the model's business.
"""

import ctypes
import os
import struct

import device_calls
from device_calls import ADDRESSES, CONFIG
from world import DATA, PAGE, RW, SHARED, U64_MAX, libc, outcome

CAPABILITIES = 0x34
COMMAND = 4
PM, MSI, EXPRESS, MSIX, AF = 1, 5, 0x10, 0x11, 0x13
SPACE = 4096
BEHIND_SRIOV = 0x1A0  # of igb


def read(fd, offset, size):
    ctypes.memset(DATA, 0xEE, size)
    result = outcome(libc.pread(fd, DATA, size, CONFIG + offset))
    return result, ctypes.string_at(DATA, size)


def write(fd, offset, data):
    ctypes.memmove(DATA, data, len(data))
    return outcome(libc.pwrite(fd, DATA, len(data), CONFIG + offset))


def space_of(fd):
    """Of 256 bytes on a conventional bus: a read across its end fails."""
    for size in (SPACE, 256):
        result, data = read(fd, 0, size)
        if result == size:
            return data
    raise AssertionError(f"configuration space: {result}")


def tell_changes(world, fd):
    old, new = world.spaces.get(fd, bytes(SPACE)), space_of(fd)
    words = [
        f"{i:#x}={new[i : i + 4].hex()}"
        for i in range(0, len(new), 4)
        if new[i : i + 4] != old[i : i + 4]
    ]
    world.spaces[fd] = new
    if words:
        world.say("space", fd, *words)


def capabilities(space):
    """Id → offset of the conventional ones; offsets of the extended ones."""
    found, at, seen = {}, space[CAPABILITIES] & 0xFC, 0
    while at and seen < 48:
        found.setdefault(space[at], at)
        at, seen = space[at + 1] & 0xFC, seen + 1
    extended, at = [], 0x100
    while len(space) > at >= 0x100 and any(space[at : at + 4]) and at not in extended:
        extended.append(at)
        at = struct.unpack_from("<I", space, at)[0] >> 20 & 0xFFC
    return found, extended


def open_all(world):
    """One after the other, so that each answer has its place."""
    iommufd = world.iommufds[0]
    for number, address in enumerate(ADDRESSES):
        if number in world.devices:
            continue
        fd = os.open(f"/dev/vfio/devices/vfio{number}", os.O_RDWR)
        data = struct.pack("<IIiIQ", 24, 0, iommufd, 0, 0)
        ctypes.memmove(DATA, data, len(data))
        result = outcome(libc.ioctl(fd, 0x3B76, DATA))
        world.devices[number] = fd
        world.bound[fd] = iommufd
        world.say("open of", address, fd, result)
        tell_changes(world, fd)


def with_device(call):
    def made(world):
        open_all(world)
        call(world, world.devices[world.random(len(ADDRESSES))])

    return made


def write_anywhere(world, fd):
    """Mostly a register of a capability."""
    random, space = world.random, world.spaces[fd]
    found, extended = capabilities(space)
    starts = [*found.values(), *extended]
    if starts and random.percent(75):
        offset = random.of(*starts) + random(0x40)
    else:
        offset = random.of(random(0x40), random(0x100), random(SPACE))
    size = random.of(1, 2, 4, 4, 2, 1, 3, 8, 5, 0, 16)
    if random.percent(60) and size:
        offset -= offset % random.of(2, 4)
    if offset < BEHIND_SRIOV + 4 and offset + size > BEHIND_SRIOV:
        return  # QEMU clears it together with the capability before it
    data = bytes(random.of(random(256), random(256), 0, 255) for _ in range(size))
    world.say("write", fd, hex(offset), data.hex(), write(fd, offset, data))
    tell_changes(world, fd)


def read_anywhere(world, fd):
    random = world.random
    offset = random.of(random(0x100), random(SPACE), SPACE - random(9), random(2) * SPACE)
    size = random.of(0, 1, 2, 3, 4, 5, 7, 8, 16, 33)
    result, data = read(fd, offset, size)
    world.say("read", fd, hex(offset), size, result, data.hex())


def size_bars(world, fd):
    """As a kernel does it, and with other values."""
    random = world.random
    offset = random.of(0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0x30)
    before = read(fd, offset, 4)[1]
    ones = random.of(b"\xff" * 4, b"\xff" * 4, b"\xfe\xff\xff\xff", b"\x00\xf8\xff\xff")
    world.say("size", fd, hex(offset), write(fd, offset, ones), read(fd, offset, 4)[1].hex())
    if random.percent(70):
        write(fd, offset, before)
    tell_changes(world, fd)


def set_command(world, fd):
    value = world.random.of(0, 1, 2, 3, 4, 6, 7, 0x407, 0x400, 0x547, 0xFFFF)
    data = struct.pack("<H", value)
    world.say("command", fd, hex(value), write(fd, COMMAND, data))
    tell_changes(world, fd)


def set_power(world, fd):
    """States of power, as far as it has them; then what is not there while it sleeps."""
    at = capabilities(world.spaces[fd])[0].get(PM)
    if at is None:
        return
    value = world.random.of(3, 3, 0, 0, 0, 1, 2, 0x8103, 0x8000)
    world.say("power", fd, hex(value), write(fd, at + 4, struct.pack("<H", value)))
    tell_changes(world, fd)
    use_region(world, fd)


def reset_by_config(world, fd):
    """FLR, by either capability."""
    found, _ = capabilities(world.spaces[fd])
    if EXPRESS in found:
        at = found[EXPRESS] + 8
        value = struct.unpack_from("<H", world.spaces[fd], at)[0] | 0x8000
        world.say("FLR", fd, write(fd, at, struct.pack("<H", value)))
    elif AF in found:
        world.say("AF FLR", fd, write(fd, found[AF] + 4, b"\x01"))
    tell_changes(world, fd)


def reset(world, fd):
    world.say("RESET", fd, outcome(libc.ioctl(fd, 0x3B6F, 0)))
    tell_changes(world, fd)


def hot_reset(world, fd):
    data = struct.pack("<III", 12, 0, 0)
    world.ioctl("PCI_HOT_RESET", fd, 0x3B71, data)
    for other in world.devices.values():
        tell_changes(world, other)


def message_control(world, fd):
    """MSI and MSI-X are the kernel's, whatever a client writes."""
    found, _ = capabilities(world.spaces[fd])
    random, kind = world.random, world.random.of(MSI, MSIX)
    if kind in found:
        value = random.of(1, 0, 0x71, 0x8000, 0xC000, 0x4000, 0xFFFF)
        world.say("message control", fd, write(fd, found[kind] + 2, struct.pack("<H", value)))
        tell_changes(world, fd)


def set_irqs(world, fd):
    """One vector or several, on or off."""
    random = world.random
    index, n = random.of(0, 1, 2, 1, 2), random.of(1, 1, 2, 3, 0)
    if n and random.percent(75):
        fds = [random.of(*world.eventfds, -1) for _ in range(n)]
        data = struct.pack(f"<IIIII{n}i", 20 + 4 * n, 0x24, index, 0, n, *fds)
    else:
        data = struct.pack("<IIIII", 20, random.of(0x21, 0x21, 0x9, 0x11), index, 0, n)
    world.ioctl("SET_IRQS", fd, 0x3B6E, data, index)
    tell_changes(world, fd)


def ring(world, fd):
    """By the client itself: whatever state the device is in."""
    random = world.random
    index, n = random.of(0, 1, 2, 3, 4), random.of(1, 1, 2)
    kind = random.of(0x21, 0x22)
    data = struct.pack("<IIIII", 20 + (kind & 2) // 2 * n, kind, index, 0, n) + bytes([1] * n)
    world.ioctl("SET_IRQS", fd, 0x3B6E, data, f"ring {index}")
    world.say("signalled", *world.fired())


def use_region(world, fd):
    """Reads of any width anywhere, results only; writes where nothing is meant to take them."""
    random, region = world.random, world.random.of(0, 1, 2, 3, 4, 5, 6, 8, 9)
    size = random.of(0, 1, 2, 3, 4, 5, 7, 8, 12, 16, 64, PAGE)
    ends = 0x1000, 0x4000, 0x20000, 0x40000, 0x100000, 0x20, 0x200000
    offset = random.of(0, 4, random(64), random.of(*ends) - random(17), 1 << 39, 0xA0000, 0xBFFFC)
    if random.percent(80):
        result = outcome(libc.pread(fd, DATA, size, (region << 40) + offset))
        world.say("read of", fd, region, hex(offset), size, result)
        return
    region = random.of(6, 8, 9, 3, 5)
    if region in (3, 5):
        offset = 1 << 39
    result = outcome(libc.pwrite(fd, DATA, size, (region << 40) + offset))
    world.say("write of", fd, region, hex(offset), size, result)


def map_region(world, fd):
    """Mappings are made while decoding is off, too."""
    random, region = world.random, world.random.of(0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    length = PAGE * random.of(1, 1, 4, 32, 256, 512)
    offset = PAGE * random.of(0, 0, 0, 1, 3, 4, 31, 255)
    address = libc.mmap(None, length, RW, SHARED, fd, (region << 40) + offset)
    if address in (None, U64_MAX):
        world.say("mmap", fd, region, hex(offset), length, outcome(-1))
    else:
        libc.munmap(address, length)
        world.say("mmap", fd, region, hex(offset), length, "mapped")


def low_power(world, fd):
    random, number = world.random, world.random.of(3, 5, 3, 5, 4)
    data = struct.pack("<II", 16, number | device_calls.SET) + struct.pack("<iI", -1, 0)
    if number != 4:
        data = struct.pack("<II", 8, number | device_calls.SET)
    world.ioctl("FEATURE", fd, 0x3B75, data, number)
    if random.percent(60):  # of a device that sleeps all is refused, or wakes it
        random.of(use_region, reset, set_irqs, map_region)(world, fd)
        data = struct.pack("<II", 8, device_calls.LOW_POWER_EXIT | device_calls.SET)
        world.ioctl("FEATURE", fd, 0x3B75, data, "exit")
    tell_changes(world, fd)


def get_info(world, fd):
    """What is told of regions and interrupts does not depend on what was written."""
    random, case = world.random, world.random(2)
    if case:
        data = struct.pack("<IIIIQQ", 32, 0, random(10), 0, 0, 0)
        world.ioctl("GET_REGION_INFO", fd, 0x3B6C, data)
    else:
        world.ioctl("GET_IRQ_INFO", fd, 0x3B6D, struct.pack("<IIII", 16, 0, random(6), 0))


def close(world, fd):
    """It comes back as it was in the beginning, as far as that can be."""
    number = next(number for number, other in world.devices.items() if other == fd)
    os.close(world.devices.pop(number))
    world.bound.pop(fd)
    del world.spaces[fd]
    world.say("close of", ADDRESSES[number], fd)
    open_all(world)


CALLS = {
    with_device(call): weight
    for call, weight in {
        write_anywhere: 30,
        read_anywhere: 8,
        size_bars: 6,
        set_command: 6,
        set_power: 5,
        reset_by_config: 2,
        reset: 3,
        hot_reset: 1,
        message_control: 5,
        set_irqs: 10,
        ring: 4,
        use_region: 10,
        map_region: 4,
        low_power: 2,
        get_info: 2,
        close: 2,
    }.items()
}
