"""Calls to an iommufd: address spaces, page tables, the calls of VFIO's container."""

import ctypes
import os
import select
import struct

from world import DATA, MEMORY, PAGE, U64_MAX, libc, map_at, outcome, word

MAP_FLAGS = (7, 7, 7, 6, 2, 4, 3, 5, 1, 0)


def open_iommufd(world):
    if len(world.iommufds) < 4:
        path = world.random.of("/dev/iommu", "/dev/iommu", "/dev/vfio/vfio")
        world.iommufds.append(os.open(path, os.O_RDWR))
        world.say("open", path, world.iommufds[-1])


def close_iommufd(world):
    if len(world.iommufds) > 1:
        fd = world.iommufds.pop(world.random(len(world.iommufds)))
        os.close(fd)
        world.say("close", fd)


def ioas_alloc(world):
    result, cmd = world.sized("IOAS_ALLOC", world.iommufd(), 0x3B81, "II", world.bad(0), 0)
    if result == 0 and len(cmd) >= 12:
        world.learn("ioas", word(cmd, 8))


def destroy(world):
    fd = world.iommufd()
    kinds = ("ioas", "hwpt", "hwpt", "device", "fault", "viommu", "vdevice", "queue", "mock")
    number = world.id(*kinds)
    if world.sized("DESTROY", fd, 0x3B80, "I", number)[0] == 0:
        world.forget(number)


def ioas_map(world):
    fd = world.iommufd()
    flags = world.random.of(*MAP_FLAGS, world.bad(7, 50))
    values = world.id("ioas"), world.bad(0, 1), world.user_va(), world.length(), world.iova()
    world.sized("IOAS_MAP", fd, 0x3B85, "IIIQQQ", flags, *values)


def ioas_map_file(world):
    fd = world.iommufd()
    flags = world.random.of(*MAP_FLAGS, world.bad(7, 50))
    file = world.random.of(*[world.memfd] * 3, world.null, world.ioeventfds[0], -1, 999)
    start = world.random.of(0, PAGE, PAGE * 60, PAGE * 64, 123, U64_MAX)
    values = world.id("ioas"), file, start, world.length(), world.iova()
    world.sized("IOAS_MAP_FILE", fd, 0x3B8F, "IIiQQQ", flags, *values)


def ioas_unmap(world):
    fd, iova, length = world.iommufd(), world.iova(), world.length()
    if world.random.percent(10):
        iova, length = 0, U64_MAX
    world.sized("IOAS_UNMAP", fd, 0x3B86, "IQQ", world.id("ioas"), iova, length)


def ioas_copy(world):
    fd = world.iommufd()
    flags = world.random.of(7, 7, 7, 6, 2, 5, 1, 0, world.bad(7, 50))
    values = world.id("ioas"), world.id("ioas"), world.length(), world.iova(), world.iova()
    world.sized("IOAS_COPY", fd, 0x3B83, "IIIQQQ", flags, *values)


def ioas_iova_ranges(world):
    ctypes.memset(DATA, 0xEE, 256)
    fd, n, address = world.iommufd(), world.random.of(0, 1, 2, 8), world.random.of(*[DATA] * 4, 0)
    values = world.id("ioas"), n, world.bad(0), address, 0, 0
    world.sized("IOAS_IOVA_RANGES", fd, 0x3B84, "IIIQII", *values)
    world.say("ranges", ctypes.string_at(DATA, n * 16).hex())


def ioas_allow_iovas(world):
    random, ranges = world.random, []
    for _ in range(random(4)):
        start = random.of(0, 0x100000, 0x100000 + PAGE * random(64), 0xFEE00000 - PAGE, 1 << 40)
        start += random.of(0, 0, 0, 123)
        ranges += [start, start + PAGE * random.of(0, 1, 16, 1 << 20) - 1 & U64_MAX]
    data = struct.pack(f"<{len(ranges)}Q", *ranges)
    ctypes.memmove(DATA, data, len(data))
    values = world.id("ioas"), len(ranges) // 2, world.bad(0), random.of(DATA, DATA, DATA, 0)
    world.sized("IOAS_ALLOW_IOVAS", world.iommufd(), 0x3B82, "IIIQ", *values)


def option(world):
    fd = world.iommufd()
    kind, op = world.bad(world.random(2)), world.random.of(0, 1, 0, 1, 2)
    target = world.random.of(world.id("ioas"), 0)
    values = kind, op, world.bad(0, 2) & 0xFFFF, target, world.random.of(0, 1, 1, 2)
    world.sized("OPTION", fd, 0x3B87, "IHHIQ", *values)


def vfio_ioas(world):
    fd = world.iommufd()
    values = world.id("ioas"), world.random.of(0, 0, 1, 1, 2, 3), world.bad(0, 2) & 0xFFFF
    result, cmd = world.sized("VFIO_IOAS", fd, 0x3B88, "IHH", *values)
    if result == 0:
        world.learn("ioas", word(cmd, 4))


def get_hw_info(world):
    ctypes.memset(DATA, 0xEE, 64)
    random, fd, length = world.random, world.iommufd(), world.random.of(0, 4, 16, 24, 40)
    values = random.of(0, 0, 0, 1, 2), world.id("device"), length, random.of(DATA, DATA, DATA, 0)
    more = random.of(0, 0, 1, 2, 3), 0, world.bad(0, 2) & 255, 0, 0, 0
    world.sized("GET_HW_INFO", fd, 0x3B8A, "IIIQIBBBBQ", *values, *more)
    world.say("info", ctypes.string_at(DATA, length).hex())


def fault_queue_alloc(world):
    result, cmd = world.sized(
        "FAULT_QUEUE_ALLOC", world.iommufd(), 0x3B8E, "III", world.bad(0), 0, 0
    )
    if result == 0:
        world.learn("fault", word(cmd, 8))
        keep_queue(world, word(cmd, 12))


def keep_queue(world, fd):
    world.queues.append(fd)
    if len(world.queues) > 3:
        os.close(world.queues.pop(world.random(len(world.queues))))


def move_by_queue(world):
    if not world.queues:
        return
    fd, size = world.random.of(*world.queues), world.random.of(0, 8, 40, 80, 41)
    if world.random.percent(25):
        result = libc.pread(fd, DATA, size, world.random.of(0, 0, 40))
        world.say("pread of queue", fd, size, outcome(result))
    elif world.random.percent(33):
        world.say("read of queue", fd, size, outcome(libc.read(fd, DATA, size)))
    else:
        world.say("write of queue", fd, size, outcome(libc.write(fd, DATA, size)))


def dirty_tracking(world):
    fd, hwpt = world.iommufd(), world.id("hwpt")
    if world.random.percent(50):
        values = world.random.of(0, 1, 1, 2), hwpt, world.bad(0)
        world.sized("HWPT_SET_DIRTY_TRACKING", fd, 0x3B8B, "III", *values)
    else:
        page_size = world.random.of(PAGE, PAGE, 0, 2 * PAGE, 3)
        values = hwpt, world.random.of(0, 1, 2), world.bad(0, 2), world.iova(), world.length()
        world.sized("HWPT_GET_DIRTY_BITMAP", fd, 0x3B8C, "IIIQQQQ", *values, page_size, DATA)


def hwpt_invalidate(world):
    random, fd = world.random, world.iommufd()
    values = world.id("hwpt", "viommu"), random.of(DATA, 0), random.of(0, 1, 2, 0xDEADBEEF)
    more = random.of(0, 8, 16, 5000), random.of(0, 1, 600000), world.bad(0)
    world.sized("HWPT_INVALIDATE", fd, 0x3B8D, "IQIIII", *values, *more)


def ioas_change_process(world):
    world.sized("IOAS_CHANGE_PROCESS", world.iommufd(), 0x3B92, "I", world.bad(0, 20))


def unknown(world):
    """Numbers that nobody has; those of the test ioctl are not known everywhere."""
    fd = world.random.of(world.iommufd(), *(list(world.devices.values()) or [-1]))
    number = world.random.of(0x3B95, 0x3BA1, 0x3B7F, 0x3B7A, 0x3B63, 0x3B79, 0x3BFF)
    world.ioctl("unknown", fd, number, bytes(64), hex(number))


def container(world):
    """The calls of a VFIO container."""
    random, fd, case = world.random, world.iommufd(), world.random(7)
    if case < 3:
        name, number, argument = (
            ("GET_API_VERSION", 0x3B64, random(3)),
            ("CHECK_EXTENSION", 0x3B65, random(16)),
            ("SET_IOMMU", 0x3B66, random.of(1, 3, 3, 3, 6, 8, 0)),
        )[case]
        world.say(name, fd, argument, outcome(libc.ioctl(fd, number, argument)))
    elif case == 3:
        argsz = random.of(16, 24, 32, 100, 200, 8)
        data = struct.pack("<II", argsz, world.bad(0)) + bytes(300)
        world.ioctl("IOMMU_GET_INFO", fd, 0x3B70, data)
    elif case < 6:
        argsz, flags = random.of(32, 32, 32, 24, 40, 0), random.of(3, 3, 3, 1, 2, 0, 4, 8)
        values = argsz, flags, world.user_va(), world.iova(), world.length()
        world.ioctl("MAP_DMA", fd, 0x3B71, struct.pack("<IIQQQ", *values) + bytes(8))
    else:
        iova, length, flags = world.iova(), world.length(), random.of(0, 0, 0, 2, 1, 4)
        if random.percent(20):
            iova, length = 0, random.of(0, U64_MAX)
        values = random.of(24, 24, 24, 16, 40), flags, iova, length
        world.ioctl("UNMAP_DMA", fd, 0x3B72, struct.pack("<IIQQ", *values) + bytes(16))


def poll(world):
    tell_poll(world, world.random.of(*world.iommufds, *world.devices.values(), *world.queues))


def tell_poll(world, fd):
    poller = select.poll()
    poller.register(fd, world.random.of(0xFFF, 1))
    world.say("poll", fd, *(event for _, event in poller.poll(0)))


def map_memory_anew(world):
    libc.munmap(MEMORY + 40 * PAGE, 5 * PAGE)
    map_at(MEMORY + 40 * PAGE, 5 * PAGE)
    world.say("memory is another")


# How often each is made.
CALLS = {
    open_iommufd: 3,
    close_iommufd: 1,
    ioas_alloc: 6,
    destroy: 5,
    ioas_map: 14,
    ioas_map_file: 6,
    ioas_unmap: 9,
    ioas_copy: 6,
    ioas_iova_ranges: 4,
    ioas_allow_iovas: 2,
    option: 3,
    vfio_ioas: 3,
    get_hw_info: 3,
    fault_queue_alloc: 2,
    move_by_queue: 2,
    dirty_tracking: 3,
    hwpt_invalidate: 2,
    ioas_change_process: 1,
    unknown: 2,
    container: 6,
    poll: 2,
    map_memory_anew: 1,
}
