"""Calls of programs written for VFIO's type1: containers, and groups with their devices.

Groups are opened, given a container and closed in any order, some while devices of theirs are open;
after each such call their states are told.
"""

import ctypes
import errno
import os
import struct

import iommufd_calls
from device_calls import ADDRESSES, CONFIG, GROUPS
from world import DATA, PAGE, U64_MAX, libc, outcome, word

MAP_READ, MAP_WRITE, MAP_VADDR = 1, 2, 4
UNMAP_DIRTY, UNMAP_ALL, UNMAP_VADDR = 1, 2, 4
LARGEST_INFO = 256


def a_container(world):
    """Mostly one that a group may have."""
    if world.random.percent(3):
        return world.any_fd()
    world.current = world.random.of(*world.iommufds[:2], *world.iommufds[:2], *world.iommufds)
    return world.current


def group_fd(world, number):
    if world.random.percent(2):
        return world.any_fd()
    return world.groups.get(number, -1)


def tell_status(world, *numbers):
    """What the states of such groups are, as far as they are open."""
    for number in numbers:
        if number in world.groups:
            data = struct.pack("<II", world.random.of(8, 8, 8, 8, 4, 16, 7), world.bad(0))
            world.ioctl("GROUP_GET_STATUS", world.groups[number], 0x3B67, data, number)


def open_group(world):
    """Those that are open are EBUSY."""
    number = world.random.of(*GROUPS)
    flags = world.random.of(os.O_RDWR, os.O_RDWR, os.O_RDWR, os.O_RDONLY, os.O_WRONLY)
    try:
        fd = os.open(f"/dev/vfio/{number}", flags)
    except OSError as error:
        fd = errno.errorcode[error.errno]
    else:
        assert number not in world.groups, f"group {number} is open twice"
        world.groups[number] = fd
    world.say("open of group", number, flags, fd)
    tell_status(world, number)


def close_group(world):
    if world.groups:
        number = world.random.of(*sorted(world.groups))
        os.close(world.groups.pop(number))
        world.say("close of group", number)
        tell_status(world, *sorted(world.groups)[:2])


def set_container(world):
    number = world.random.of(*(sorted(world.groups) or GROUPS))
    data = struct.pack("<i", a_container(world))
    world.ioctl("GROUP_SET_CONTAINER", group_fd(world, number), 0x3B68, data, number)
    tell_status(world, number)


def unset_container(world):
    number = world.random.of(*(sorted(world.groups) or GROUPS))
    result = outcome(libc.ioctl(group_fd(world, number), 0x3B69, world.random.of(0, 1)))
    world.say("GROUP_UNSET_CONTAINER", number, result)
    tell_status(world, number)


def a_name(world, number):
    random, name = world.random, ADDRESSES[world.random.of(*GROUPS[number])]
    if random.percent(12):
        name = random.of(
            *("", "x", "0000:00:00.0", name[:-1], name + "0", name + " ", " " + name, name.upper()),
            *(random.of(*ADDRESSES), name + " vf_token=", name + " a=b", "0" * 5000, name[5:]),
            name + " vf_token=00000000-0000-0000-0000-000000000000",
        )
    return name


def get_device_fd(world):
    number = world.random.of(*(sorted(world.groups) or GROUPS))
    name = a_name(world, number)
    ctypes.memmove(DATA, name.encode() + b"\0", len(name) + 1)
    at = world.random.of(*[DATA] * 30, 0)
    fd = outcome(libc.ioctl(group_fd(world, number), 0x3B6A, at))
    world.say("GROUP_GET_DEVICE_FD", number, name[:80], "null" if at == 0 else "", fd)
    if isinstance(fd, int):
        world.devices[fd] = fd
        if len(world.devices) > 10:
            close_device(world)
    tell_status(world, number)


def open_cdev(world):
    """A device that its group owns cannot be bound."""
    number = world.random(len(ADDRESSES))
    if len(world.devices) < 10:
        fd = os.open(f"/dev/vfio/devices/vfio{number}", os.O_RDWR)
        world.say("open of device", number, fd)
        world.devices[fd] = fd


def close_device(world):
    if world.devices:
        fd = world.random.of(*sorted(world.devices))
        os.close(world.devices.pop(fd))
        world.say("close of device", fd)
        tell_status(world, *sorted(world.groups)[:2])


def a_device(world):
    return world.random.of(*(sorted(world.devices) or [-1]))


def use_device(world):
    random, fd, case = world.random, a_device(world), world.random(7)
    if case == 0:
        data = struct.pack("<I", random.of(16, 24, 200)) + bytes(204)
        world.ioctl("GET_INFO", fd, 0x3B6B, data)
    elif case == 1:
        result = outcome(libc.pread(fd, DATA, 4, CONFIG))
        world.say("pread", fd, result, ctypes.string_at(DATA, 4).hex())
    elif case == 2:
        data = struct.pack("<IIiIQ", 24, 0, a_container(world), 0, 0)
        world.ioctl("BIND_IOMMUFD", fd, 0x3B76, data)
        tell_status(world, *sorted(world.groups)[:2])
    elif case == 3:
        a_container(world)
        result, cmd = world.ioctl(
            "ATTACH_IOMMUFD_PT", fd, 0x3B77, struct.pack("<III", 12, 0, world.id("ioas", "hwpt"))
        )
        if result == 0:
            world.learn("hwpt", word(cmd, 8))
    elif case == 4:
        world.ioctl("DETACH_IOMMUFD_PT", fd, 0x3B78, struct.pack("<II", 8, 0))
    elif case == 5:
        world.say("RESET", fd, outcome(libc.ioctl(fd, 0x3B6F, 0)))
    else:
        hot_reset(world, fd)


def hot_reset(world, fd):
    random = world.random
    if random.percent(50):
        data = struct.pack("<III", random.of(12, 24, 36, 200), 0, 0) + bytes(200)
        world.ioctl("GET_PCI_HOT_RESET_INFO", fd, 0x3B70, data)
        return
    # Mostly the groups that it takes, without one, with one too many, in another order.
    numbers = sorted(world.groups)
    fds = [world.groups[n] for n in numbers if random.percent(60)] + [-1] * random.percent(5)
    if random.percent(30):
        fds.reverse()
    if random.percent(10):
        fds += [world.any_fd()]
    if random.percent(5):
        fds += fds
    data = struct.pack(f"<III{len(fds)}i", 12 + 4 * len(fds), 0, len(fds), *fds)
    world.ioctl("PCI_HOT_RESET", fd, 0x3B71, data)


def choose(world):
    """What can be done, and how."""
    random, fd, case = world.random, a_container(world), world.random(6)
    if case == 0:
        result = libc.ioctl(fd, 0x3B64, random.of(0, U64_MAX))
        world.say("GET_API_VERSION", fd, outcome(result))
    elif case < 3:
        kind = random.of(random(20), 1 << 31, 1 << 32 | 1, U64_MAX)
        world.say("CHECK_EXTENSION", fd, kind, outcome(libc.ioctl(fd, 0x3B65, kind)))
    else:
        kind = random.of(1, 3, 3, 3, 1, 3, 0, 2, 4, 6, 7, 8, 1 << 32 | 3, U64_MAX)
        world.say("SET_IOMMU", fd, kind, outcome(libc.ioctl(fd, 0x3B66, kind)))


def get_info(world):
    random = world.random
    argsz = random.of(random(LARGEST_INFO), 4 * random(LARGEST_INFO // 4))
    data = struct.pack("<II", argsz, world.bad(0)) + bytes([random.of(0, 255)]) * LARGEST_INFO
    world.ioctl("IOMMU_GET_INFO", a_container(world), 0x3B70, data, argsz)


def map_dma(world):
    random = world.random
    flags = random.of(3, 3, 3, 3, MAP_READ, MAP_WRITE, 0, MAP_VADDR, MAP_VADDR | 3, 8, 1 << 31)
    iova, length, va = world.iova(), world.length(), world.user_va()
    if random.percent(5):
        iova, length = U64_MAX - PAGE + 1, PAGE
    values = random.of(32, 32, 32, 32, 31, 24, 40, 0), flags, va, iova, length
    world.ioctl("MAP_DMA", a_container(world), 0x3B71, struct.pack("<IIQQQ", *values) + bytes(8))


def unmap_dma(world):
    random, iova, length = world.random, world.iova(), world.length()
    flags = random.of(0, 0, 0, 0, 0, UNMAP_ALL, UNMAP_ALL, UNMAP_VADDR, UNMAP_DIRTY, 3, 6, 8)
    if random.percent(25) or (flags == UNMAP_ALL and random.percent(70)):
        iova, length = random.of((0, 0), (0, U64_MAX), (0, 1 << 63), (0x100000, PAGE * 80))
    # With room for what a bitmap is asked with.
    values = random.of(24, 24, 24, 24, 23, 16, 48, 0), flags, iova, length
    more = struct.pack("<QQQ", PAGE, 8, DATA)
    world.ioctl("UNMAP_DMA", a_container(world), 0x3B72, struct.pack("<IIQQ", *values) + more)


def dirty_pages(world):
    random = world.random
    flags = random.of(1, 2, 4, 0, 3, 8)
    ranges = struct.pack("<QQQQQ", world.iova(), world.length(), PAGE, 8, DATA)
    data = struct.pack("<II", random.of(8, 48, 24, 4), flags) + ranges
    world.ioctl("DIRTY_PAGES", a_container(world), 0x3B75, data)


def other_calls(world):
    """Of other kinds of IOMMUs, and of groups and devices."""
    number = world.random.of(0x3B73, 0x3B74, 0x3B76, 0x3B77, 0x3B78, 0x3B79, 0x3B67, 0x3B6A)
    fd = world.random.of(a_container(world), *(sorted(world.groups.values()) or [-1]))
    world.ioctl("other", fd, number, struct.pack("<II", 64, 0) + bytes(56), hex(number))


def file_calls(world):
    """What is no ioctl, of a group or a container."""
    fd = world.random.of(a_container(world), *(sorted(world.groups.values()) or [-1]))
    if world.random.percent(50):
        world.say("read", fd, outcome(libc.read(fd, DATA, 8)))
    else:
        world.say("write", fd, outcome(libc.write(fd, DATA, 8)))


CALLS = {
    open_group: 10,
    close_group: 4,
    set_container: 8,
    unset_container: 3,
    get_device_fd: 10,
    open_cdev: 2,
    close_device: 6,
    use_device: 8,
    choose: 5,
    get_info: 5,
    map_dma: 16,
    unmap_dma: 10,
    dirty_pages: 1,
    other_calls: 1,
    file_calls: 1,
    iommufd_calls.open_iommufd: 2,
    iommufd_calls.close_iommufd: 1,
    iommufd_calls.ioas_alloc: 1,
    iommufd_calls.destroy: 3,
    iommufd_calls.ioas_map: 2,
    iommufd_calls.ioas_unmap: 2,
    iommufd_calls.ioas_copy: 1,
    iommufd_calls.ioas_iova_ranges: 1,
    iommufd_calls.ioas_allow_iovas: 1,
    iommufd_calls.option: 1,
    iommufd_calls.vfio_ioas: 3,
    iommufd_calls.poll: 1,
    iommufd_calls.map_memory_anew: 1,
}
