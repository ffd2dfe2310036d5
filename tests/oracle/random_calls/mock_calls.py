"""Calls of the test ioctl (IOMMU_TEST_CMD), and what the mock IOMMU has that others have not."""

import ctypes
import os
import struct

from iommufd_calls import keep_queue
from world import DATA, PAGE, U64_MAX, word

TEST_CMD, SIZE = 0x3BA0, 72
APERTURE = 0x1000000
SELFTEST, HWPT_SELFTEST = 0xDEADBEEF, 0xDEAD
ADD_RESERVED, MOCK_DOMAIN, MD_CHECK_MAP, CREATE_ACCESS, DESTROY_ACCESS_PAGES = 1, 2, 3, 5, 6
ACCESS_PAGES, ACCESS_RW, MOCK_DOMAIN_REPLACE, ACCESS_REPLACE_IOAS = 7, 8, 10, 11
MOCK_DOMAIN_FLAGS, DIRTY, MD_CHECK_IOTLB, TRIGGER_IOPF, DEV_CHECK_CACHE = 12, 13, 14, 15, 16
TRIGGER_VEVENT, PASID_ATTACH, PASID_REPLACE, PASID_DETACH, PASID_CHECK_HWPT = 17, 18, 19, 20, 21


def test_cmd(world, name, op, target, *fields):
    """fields: (offset, bytes, value) each."""
    if world.random.percent(2):
        target = world.id()
    data = bytearray(struct.pack("<IIII", SIZE, op, target & 0xFFFFFFFF, 0).ljust(SIZE, b"\0"))
    for offset, size, value in fields:
        data[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    return world.ioctl(name, world.current, TEST_CMD, bytes(data))


def mock_device(world):
    target = world.id("ioas", "ioas", "hwpt")
    if world.random.percent(60):
        result, cmd = test_cmd(world, "MOCK_DOMAIN", MOCK_DOMAIN, target)
    else:
        flags = world.random.of(0, 1, 2, 4, 4, 3, 8)
        result, cmd = test_cmd(
            world, "MOCK_DOMAIN_FLAGS", MOCK_DOMAIN_FLAGS, target, (28, 4, flags)
        )
    if result == 0:
        for kind, offset in (("mock", 16), ("hwpt", 20), ("device", 24)):
            world.learn(kind, word(cmd, offset))


def replace(world):
    pt_id = world.id("ioas", "hwpt")
    result, cmd = test_cmd(
        world, "MOCK_DOMAIN_REPLACE", MOCK_DOMAIN_REPLACE, world.id("mock"), (16, 4, pt_id)
    )
    if result == 0:
        world.learn("hwpt", word(cmd, 16))


def add_reserved(world):
    fields = (16, 8, world.iova()), (24, 8, world.length())
    test_cmd(world, "ADD_RESERVED", ADD_RESERVED, world.id("ioas"), *fields)


def check(world):
    random, case = world.random, world.random(4)
    if case == 0:
        fields = (16, 8, world.iova()), (24, 8, PAGE), (32, 8, world.user_va())
        test_cmd(world, "MD_CHECK_MAP", MD_CHECK_MAP, world.id("hwpt"), *fields)
    elif case == 1:
        fields = (16, 4, random(5)), (20, 4, random(3))
        test_cmd(world, "MD_CHECK_IOTLB", MD_CHECK_IOTLB, world.id("hwpt"), *fields)
    elif case == 2:
        fields = (16, 4, random(5)), (20, 4, random(3))
        test_cmd(world, "DEV_CHECK_CACHE", DEV_CHECK_CACHE, world.id("device"), *fields)
    else:
        fields = (16, 4, random.of(0, 1)), (24, 8, world.iova())
        sizes = (32, 8, random.of(1, 4, 64, 0) * PAGE), (40, 8, random.of(PAGE, PAGE, 0, 3))
        where = (48, 8, random.of(DATA, DATA, 0))
        test_cmd(world, "DIRTY", DIRTY, world.id("hwpt"), *fields, *sizes, where)


def access(world):
    """The test ioctl gives a descriptor of each; some are open."""
    random = world.random
    if len(world.accesses) < 3:
        result, cmd = test_cmd(
            world, "CREATE_ACCESS", CREATE_ACCESS, world.id("ioas"), (20, 4, random.of(0, 1, 1, 2))
        )
        if result == 0:
            world.accesses.append(word(cmd, 16))
    elif random.percent(20):
        fd = world.accesses.pop(random(len(world.accesses)))
        os.close(fd)
        world.say("close of access", fd)


def an_access(world):
    if world.accesses and world.random.percent(92):
        return world.random.of(*world.accesses)
    return world.random.of(-1, 999, world.null, *world.iommufds)


def access_pages(world):
    random = world.random
    length = random.of(PAGE, PAGE, 2 * PAGE, 100, 0, U64_MAX, 8 * PAGE)
    fields = (16, 4, random.of(0, 1, 2, 3, 1)), (24, 8, world.iova()), (32, 8, length)
    result, cmd = test_cmd(
        world, "ACCESS_PAGES", ACCESS_PAGES, an_access(world), *fields, (40, 8, world.user_va())
    )
    if result == 0:
        world.pins.append(word(cmd, 20))


def destroy_access_pages(world):
    if not world.pins:
        return
    known = world.random.percent(90)
    pin = world.pins.pop(world.random(len(world.pins))) if known else world.random(50)
    test_cmd(world, "DESTROY_ACCESS_PAGES", DESTROY_ACCESS_PAGES, an_access(world), (16, 4, pin))


def access_rw(world):
    random = world.random
    length, flags = random.of(1, 16, PAGE, PAGE * 2, 0, 1 << 25), random.of(0, 1, 2, 3, 4, 5)
    fields = (16, 8, world.iova() + random.of(0, 0, 5)), (24, 8, length), (40, 4, flags)
    where = (32, 8, random.of(DATA, DATA, DATA, 0))
    test_cmd(world, "ACCESS_RW", ACCESS_RW, an_access(world), *fields, where)


def access_replace(world):
    fields = (16, 4, world.id("ioas"))
    test_cmd(world, "ACCESS_REPLACE_IOAS", ACCESS_REPLACE_IOAS, an_access(world), fields)


def event(world):
    random, device = world.random, (16, 4, world.id("device"))
    if world.queues and random.percent(50):
        fields = (20, 4, random.of(0xFFFFFFFF, 0, 1)), (24, 4, random(4)), (28, 4, random.of(1, 5))
        where = (32, 8, world.iova())
        test_cmd(world, "TRIGGER_IOPF", TRIGGER_IOPF, 0, device, *fields, where)
    else:
        test_cmd(world, "TRIGGER_VEVENT", TRIGGER_VEVENT, 0, device)


def pasid(world):
    pasid = (16, 4, world.random.of(0, 1, 2, 3, 100, 1 << 20, (1 << 20) - 1))
    name, op, *kinds = world.random.of(
        ("PASID_ATTACH", PASID_ATTACH, "ioas", "hwpt"),
        ("PASID_REPLACE", PASID_REPLACE, "ioas", "hwpt"),
        ("PASID_DETACH", PASID_DETACH),
        ("PASID_CHECK_HWPT", PASID_CHECK_HWPT, "hwpt"),
    )
    target = [(20, 4, world.id(*kinds))] if kinds else []
    test_cmd(world, name, op, world.id("mock"), pasid, *target)


def hwpt_alloc(world):
    random = world.random
    ctypes.memmove(DATA, struct.pack("<II", random.of(0, 1), 0).ljust(32, b"\0"), 32)
    flags, kind = (
        random.of(0, 0, 1, 1, 2, 3, 4, 8, 5, 16),
        random.of(0, 0, 0, 1, *[HWPT_SELFTEST] * 3),
    )
    values = flags, world.id("device"), world.id("ioas", "hwpt", "viommu"), 0, world.bad(0, 2), kind
    more = random.of(0, 4, 4, 8), random.of(0, DATA, DATA, DATA), world.id("fault"), world.bad(0, 2)
    result, cmd = world.sized("HWPT_ALLOC", world.current, 0x3B89, "IIIIIIIQII", *values, *more)
    if result == 0:
        world.learn("hwpt", word(cmd, 16))


def viommu(world):
    random, fd, case = world.random, world.current, world.random(4)
    if case == 0:
        kind, length = random.of(0, 1, SELFTEST, SELFTEST), random.of(0, 16, 16)
        values = world.bad(0), kind, world.id("device"), world.id("hwpt"), 0, length, 0
        result, cmd = world.sized(
            "VIOMMU_ALLOC", fd, 0x3B90, "IIIIIIIQ", *values, random.of(DATA, DATA, 0)
        )
        if result == 0:
            world.learn("viommu", word(cmd, 20))
    elif case == 1:
        values = world.id("viommu"), world.id("device"), 0, random.of(0, 1, 2, 0x99)
        result, cmd = world.sized("VDEVICE_ALLOC", fd, 0x3B91, "IIIQ", *values)
        if result == 0:
            world.learn("vdevice", word(cmd, 12))
    elif case == 2:
        values = world.bad(0), world.id("viommu"), random.of(0, 1, 2, 42), random.of(0, 1, 8)
        result, cmd = world.sized(
            "VEVENTQ_ALLOC", fd, 0x3B93, "IIIIIII", *values, 0, 0, world.bad(0, 2)
        )
        if result == 0:
            world.learn("queue", word(cmd, 20))
            keep_queue(world, word(cmd, 24))
    else:
        values = world.bad(0), world.id("viommu"), random.of(0, 1, SELFTEST), random(3), 0
        result, cmd = world.sized(
            "HW_QUEUE_ALLOC", fd, 0x3B94, "IIIIIQQ", *values, world.iova(), world.length()
        )
        if result == 0:
            world.learn("queue", word(cmd, 20))


def of_an_iommufd(call):
    """The test ioctl is nothing for other files."""

    def made(world):
        if world.iommufd() in world.iommufds:
            call(world)

    return made


CALLS = {
    of_an_iommufd(call): weight
    for call, weight in {
        mock_device: 5,
        replace: 2,
        add_reserved: 1,
        check: 4,
        access: 1,
        access_pages: 4,
        destroy_access_pages: 2,
        access_rw: 3,
        access_replace: 1,
        event: 1,
        pasid: 2,
        hwpt_alloc: 15,
        viommu: 12,
    }.items()
}
