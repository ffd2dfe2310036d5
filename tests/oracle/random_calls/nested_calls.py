"""Calls about what a page table can be made of: parents, nested ones, vIOMMUs, queues, PASIDs.

On the mock IOMMU, which has all of it. Ids are mostly of the right kind, so that things get made; a
device of the mock may also be attached to any of them.

Events of the mock come a moment after they were asked for: there is a pause before they are read.
"""

import ctypes
import os
import struct
import time

import iommufd_calls
import mock_calls
from mock_calls import (
    APERTURE,
    DEV_CHECK_CACHE,
    DIRTY,
    HWPT_SELFTEST,
    MD_CHECK_IOTLB,
    MD_CHECK_MAP,
    MOCK_DOMAIN,
    MOCK_DOMAIN_FLAGS,
    MOCK_DOMAIN_REPLACE,
    PASID_ATTACH,
    PASID_CHECK_HWPT,
    PASID_DETACH,
    PASID_REPLACE,
    SELFTEST,
    SIZE,
    TEST_CMD,
    TRIGGER_IOPF,
    TRIGGER_VEVENT,
)
from world import DATA, FENCE, MEMORY, PAGE, RW, SHARED, U64_MAX, libc, outcome, word

NEST_PARENT, DIRTY_TRACKING, FAULT, PASID = 1, 2, 4, 8
INVALID_SELFTEST, VEVENTS_SELFTEST = 0xDADBEEF, 0xBEEFBEEF
TABLES = "ioas", "parent", "paging", "auto", "nested"
KINDS = (*TABLES, "fault", "viommu", "vdevice", "veventq", "hw_queue", "mock", "device")
FAULT_SIZE, RESPONSE_SIZE = 40, 8
A_MOMENT = 0.02


def pick(world, *kinds):
    """The id of an object of these kinds; rarely of another one, or of none."""
    owned = world.owned.get(world.current, {})
    if world.random.percent(4):
        kinds = KINDS
    ids = [number for kind in kinds for number in owned.get(kind, [])]
    if not ids or world.random.percent(2):
        return world.random.of(0, 1, 9, 99, 0x7FFFFFFF)
    return world.random.of(*ids)


def count(world, *kinds):
    owned = world.owned.get(world.current, {})
    return sum(len(owned.get(kind, [])) for kind in kinds)


def made(world, kind, result, cmd, offset):
    if result == 0:
        number = word(cmd, offset)
        world.forget(number)
        world.learn(kind, number)


def iova(world):
    if world.random.percent(3):
        return world.random.of(0, U64_MAX, 1 << 31, APERTURE - PAGE, (1 << 31) - PAGE, 1 << 56)
    return world.iova()


def poke(data):
    ctypes.memmove(DATA, data, len(data))


def test_cmd(world, name, op, target, *fields):
    """fields: (offset, bytes, value) each."""
    data = bytearray(struct.pack("<IIII", SIZE, op, target & 0xFFFFFFFF, 0).ljust(SIZE, b"\0"))
    for offset, size, value in fields:
        data[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    return world.ioctl(name, world.current, TEST_CMD, bytes(data))


# ---- address spaces and devices


def ioas(world):
    if count(world, "ioas") < 3:
        made(world, "ioas", *world.sized("IOAS_ALLOC", world.current, 0x3B81, "II", 0, 0), 8)
    else:
        values = pick(world, "ioas"), world.random.of(0, 1, 2), world.bad(0, 2) & 0xFFFF
        made(world, "ioas", *world.sized("VFIO_IOAS", world.current, 0x3B88, "IHH", *values), 4)


def memory(world):
    """Mappings come and go; under a page table as well."""
    random, target = world.random, pick(world, "ioas")
    length = PAGE * random.of(1, 1, 1, 2, 4, 8, 16)
    if random.percent(65):
        page = random.of(0, 8, 20, 96, 122, 150, 160, 190)
        values = random.of(7, 7, 7, 6, 5, 3), target, 0, MEMORY + page * PAGE, length, iova(world)
        world.sized("IOAS_MAP", world.current, 0x3B85, "IIIQQQ", *values)
    else:
        values = target, *random.of((iova(world), length), (iova(world), length), (0, U64_MAX))
        world.sized("IOAS_UNMAP", world.current, 0x3B86, "IQQ", *values)


def mock_device(world):
    if count(world, "mock") > 4:
        return
    target = pick(world, *world.random.of(["ioas"], ["ioas"], ["parent"], ["paging"], TABLES))
    flags = world.random.of(4, 4, 4, 4, 0, 1, 5, 2)
    name, op = world.random.of(
        ("MOCK_DOMAIN", MOCK_DOMAIN), *[("MOCK_FLAGS", MOCK_DOMAIN_FLAGS)] * 3
    )
    fields = [(28, 4, flags)] if op == MOCK_DOMAIN_FLAGS else []
    result, cmd = test_cmd(world, name, op, target, *fields)
    made(world, "mock", result, cmd, 16)
    made(world, "device", result, cmd, 24)
    learn_automatic(world, result, cmd, 20)


def learn_automatic(world, result, cmd, offset):
    """What a device was attached to, unless it was made by a call."""
    owned = world.owned.get(world.current, {})
    if result == 0 and all(word(cmd, offset) not in numbers for numbers in owned.values()):
        world.learn("auto", word(cmd, offset))


def attach(world):
    target = pick(world, *world.random.of(["nested"], ["nested"], ["parent", "paging"], TABLES))
    fields = (16, 4, target)
    result, cmd = test_cmd(world, "REPLACE", MOCK_DOMAIN_REPLACE, pick(world, "mock"), fields)
    learn_automatic(world, result, cmd, 16)


def pasid(world):
    number = world.random.of(1, 1, 2, 3, 1024, 0, 1 << 20, (1 << 20) - 1)
    target = pick(world, *world.random.of(["nested"], ["paging", "parent"], TABLES))
    fields, mock, op = ((16, 4, number), (20, 4, target)), pick(world, "mock"), world.random(5)
    if op < 2:
        result, cmd = test_cmd(world, "PASID_ATTACH", PASID_ATTACH, mock, *fields)
        learn_automatic(world, result, cmd, 20)
        if result == 0:
            world.attached.append((mock, number))
    elif op == 2:
        result, cmd = test_cmd(world, "PASID_REPLACE", PASID_REPLACE, mock, *fields)
        learn_automatic(world, result, cmd, 20)
    elif op == 3:
        test_cmd(world, "PASID_DETACH", PASID_DETACH, mock, fields[0])
    else:
        hwpt = world.random.of(0, target)
        test_cmd(world, "PASID_CHECK", PASID_CHECK_HWPT, mock, fields[0], (20, 4, hwpt))


# ---- page tables


def hwpt_alloc(world, kind, flags, target, data_type, fault=None):
    random = world.random
    poke(struct.pack("<IIQQQ", random.of(0, 7, 0xBADBEEF), random.of(*[0] * 8, 1, 2), 0, 0, 0))
    length = random.of(*[8] * 12, 4, 4, 0, 16, 3, PAGE) if data_type else random.of(*[0] * 9, 8)
    where = random.of(*[DATA] * 12, 0, FENCE - 4) if length else 0
    values = flags, pick(world, "device"), target, 0, world.bad(0, 1), data_type, length, where
    queue = pick(world, "fault") if fault or random.percent(3) else 0
    result, cmd = world.sized(
        "HWPT_ALLOC", world.current, 0x3B89, "IIIIIIIQII", *values, queue, world.bad(0, 1)
    )
    made(world, kind, result, cmd, 16)


def paging(world):
    random = world.random
    flags = random.of(0, *[DIRTY_TRACKING, PASID, PASID | DIRTY_TRACKING] * 3, 16, 1 << 31)
    fault = random.percent(25)
    data_type = random.of(*[0, HWPT_SELFTEST] * 4, 1)
    hwpt_alloc(world, "paging", flags | FAULT * fault, pick(world, "ioas"), data_type, fault)


def parent(world):
    random = world.random
    flags = NEST_PARENT | random.of(0, 0, 0, PASID, PASID, PASID, DIRTY_TRACKING, 16)
    hwpt_alloc(world, "parent", flags, pick(world, "ioas"), random.of(*[0] * 5, HWPT_SELFTEST, 1))


def nested(world):
    random = world.random
    fault = random.percent(30)
    flags = random.of(*[0, 0, PASID, PASID] * 2, NEST_PARENT, DIRTY_TRACKING) | FAULT * fault
    data_type = random.of(*[HWPT_SELFTEST] * 5, 0, 1)
    target = pick(world, *random.of(*[["viommu"], ["parent"]] * 3, TABLES))
    hwpt_alloc(world, "nested", flags, target, data_type, fault)


def invalidate(world):
    """entries: one of the mock's is (flags, id) for a page table, with a vdevice for a vIOMMU."""
    random, of_viommu = world.random, world.random.percent(50)
    kind = random.of(SELFTEST, SELFTEST, SELFTEST, INVALID_SELFTEST, 0, 1)
    size = 12 if of_viommu else 8
    length = random.of(size, size, size, size, 4, 0, 16, size - 1, PAGE, PAGE + 4)
    n = random.of(0, 1, 1, 2, 3, 4, 4, 5, 300, 600000)
    entries = b""
    for _ in range(min(n, 5)):
        flags, number = random.of(0, 0, 0, 1, 2), random.of(0, 1, 2, 3, 3, 4)
        entry = (flags, random.of(1, 2, 3), number) if of_viommu else (flags, number)
        tail = bytes([random.of(0, 0, 0, 1)]) * max(length - size, 0)
        entries += (struct.pack(f"<{len(entry)}I", *entry) + tail)[: max(length, 1)]
    poke((entries + bytes(PAGE))[: 2 * PAGE])
    where = random.of(*[DATA] * 12, 0, FENCE - size, FENCE - size - 8)
    target = pick(world, "viommu" if of_viommu else "nested")
    values = target, where, kind, length, n, world.bad(0, 2)
    world.sized("HWPT_INVALIDATE", world.current, 0x3B8D, "IQIIII", *values)
    ctypes.memset(DATA, 0, 2 * PAGE)


def check_caches(world):
    random = world.random
    for number in range(4) if random.percent(30) else [random(5)]:
        value = random.of(0, 7, 0xBADBEEF)
        fields = (16, 4, number), (20, 4, value)
        test_cmd(world, "CHECK_IOTLB", MD_CHECK_IOTLB, pick(world, "nested"), *fields)
        fields = (16, 4, number), (20, 4, random.of(0, 0xBADDAD))
        test_cmd(world, "CHECK_CACHE", DEV_CHECK_CACHE, pick(world, "device"), *fields)


def check_map(world):
    target = pick(world, "paging", "parent", "auto")
    fields = (16, 8, iova(world)), (24, 8, PAGE), (32, 8, MEMORY + PAGE * world.random(32))
    test_cmd(world, "CHECK_MAP", MD_CHECK_MAP, target, *fields)


def dirty(world):
    """Pages are made dirty, tracked, told: in units of any size, into odd places."""
    random, case = world.random, world.random(4)
    target = pick(world, "paging", "paging", "parent", "auto")
    if case == 0:
        values = random.of(0, 1, 1, 1, 2), target, world.bad(0)
        world.sized("SET_DIRTY_TRACKING", world.current, 0x3B8B, "III", *values)
        return
    start, length = iova(world), PAGE * random.of(1, 4, 8, 16, 64, 65, 0)
    page_size = random.of(PAGE, PAGE, PAGE, 2048, 2 * PAGE, 16 * PAGE, 0, 3, 1 << 63)
    ctypes.memset(DATA, random.of(0, 0, 0xFF), 64)
    where = DATA + random.of(0, 0, 0, 1, 8)
    if case == 1:
        poke(bytes(random(256) for _ in range(8)))
        fields = (24, 8, start), (32, 8, length), (40, 8, page_size), (48, 8, where)
        test_cmd(world, "DIRTY", DIRTY, target, *fields)
    else:
        where = random.of(where, where, where, where, where, 0, FENCE - 1, FENCE)
        values = target, random.of(0, 0, 1, 2), world.bad(0, 2), start, length, page_size, where
        world.sized("GET_DIRTY_BITMAP", world.current, 0x3B8C, "IIIQQQQ", *values)
        world.say("bitmap", ctypes.string_at(DATA, 40).hex())
    ctypes.memset(DATA, 0, 64)


# ---- vIOMMUs


def viommu(world):
    random, kind = world.random, world.random.of(*[SELFTEST] * 6, 0, 1, 2)
    poke(struct.pack("<IIQQ", 0x5AFE, 0, 0, 0) + bytes(16))
    length, where = random.of((0, 0), (24, DATA), (24, DATA), (8, DATA), (4, DATA), (40, DATA),
                              (24, 0), (24, FENCE - 8), (0, DATA))  # fmt: skip
    target = pick(world, *random.of(["parent"], ["parent"], ["parent"], TABLES))
    values = world.bad(0), kind, pick(world, "device"), target, 0, length, world.bad(0, 1), where
    result, cmd = world.sized("VIOMMU_ALLOC", world.current, 0x3B90, "IIIIIIIQ", *values)
    made(world, "viommu", result, cmd, 20)
    if length:
        world.say("viommu", ctypes.string_at(DATA, 32).hex())


def vdevice(world):
    random = world.random
    number = random.of(*[1, 2, 3] * 4, 0, 1 << 32, U64_MAX)
    values = pick(world, "viommu"), pick(world, "device"), 0, number
    result, cmd = world.sized("VDEVICE_ALLOC", world.current, 0x3B91, "IIIQ", *values)
    made(world, "vdevice", result, cmd, 12)


def veventq(world):
    random = world.random
    kind = random.of(*[VEVENTS_SELFTEST] * 5, 0, 1, 2)
    depth = random.of(1, 2, 2, 3, 8, 0, 1 << 19, (1 << 19) + 1)
    values = world.bad(0), pick(world, "viommu"), kind, depth, 0, 0, world.bad(0, 2)
    result, cmd = world.sized("VEVENTQ_ALLOC", world.current, 0x3B93, "IIIIIII", *values)
    made(world, "veventq", result, cmd, 20)
    if result == 0:
        world.event_queues.append(word(cmd, 24))


def fault_queue(world):
    result, cmd = world.sized("FAULT_QUEUE_ALLOC", world.current, 0x3B8E, "III", world.bad(0), 0, 0)
    made(world, "fault", result, cmd, 8)
    if result == 0:
        world.queues.append(word(cmd, 12))


def hw_queue(world):
    """One page at most: whether two lie side by side is the kernel's luck."""
    random = world.random
    kind, index = random.of(*[SELFTEST] * 6, 0, 1), random.of(0, 0, 1, 1, 2)
    start, length = iova(world), random.of(PAGE, PAGE, 1, 100, 0, U64_MAX)
    if length == 1:
        start = min(start + random(PAGE), U64_MAX)
    values = world.bad(0), pick(world, "viommu"), kind, index, 0, start, length
    result, cmd = world.sized("HW_QUEUE_ALLOC", world.current, 0x3B94, "IIIIIQQ", *values)
    made(world, "hw_queue", result, cmd, 20)


def map_viommu(world):
    """The pages of a vIOMMU, at offsets that VIOMMU_ALLOC gives and at others."""
    random = world.random
    pages, offset = random.of(2, 2, 1, 3, 0), random.of(1, 1, 1, 2, 3, 5, 7, 0) * PAGE
    address = libc.mmap(None, max(pages, 1) * PAGE, RW, SHARED, world.current, offset)
    if address in (None, U64_MAX):
        world.say("mmap", pages, offset, outcome(-1))
        return
    world.say("mmap", pages, offset, ctypes.string_at(address, 8).hex())
    if random.percent(50):
        destroy(world, "viommu")
    libc.munmap(address, max(pages, 1) * PAGE)


def detach_pasids(world, mock):
    """A mock that is destroyed with a PASID attached leaves Linux a device without its IOMMU."""
    for pair in [pair for pair in world.attached if pair[0] == mock]:
        test_cmd(world, "PASID_DETACH", PASID_DETACH, mock, (16, 4, pair[1]))
        world.attached.remove(pair)


def destroy(world, *kinds):
    number = pick(world, *kinds)
    detach_pasids(world, number)
    if world.sized("DESTROY", world.current, 0x3B80, "I", number)[0] == 0:
        world.forget(number)


def destroy_some(world):
    """Often the kinds of which there are many, so that it does not become ever more."""
    every = ("nested", "nested", "veventq", "hw_queue", "vdevice", "viommu", "paging", "paging",
             "parent", "fault", "device", "ioas", "auto", "mock")  # fmt: skip
    kind = world.random.of(*every)
    if count(world, kind) > 2 or world.random.percent(30):
        destroy(world, kind)


def get_hw_info(world):
    ctypes.memset(DATA, 0xEE, 32)
    random, length = world.random, world.random.of(0, 4, 8, 8, 12, 16)
    kind, flags = random.of(0, 0, 1, 2, 0xFEEDBEEF), random.of(0, 0, 1, 2)
    values = flags, pick(world, "device"), length, random.of(DATA, DATA, DATA, 0), kind
    world.sized("GET_HW_INFO", world.current, 0x3B8A, "IIIQIBBBBQ", *values, 0, 0, 0, 0, 0)
    world.say("info", ctypes.string_at(DATA, 16).hex())


# ---- events


def trigger(world):
    random, fault = world.random, world.random.percent(60)
    device = (16, 4, pick(world, "device"))
    for _ in range(random.of(1, 1, 2, 5)):
        if fault:
            fields = (20, 4, random.of(0, 0, 0, 1, 2)), (24, 4, random(4)), (28, 4, random(16))
            where = (32, 8, iova(world))
            test_cmd(world, "TRIGGER_IOPF", TRIGGER_IOPF, 0, device, *fields, where)
        else:
            test_cmd(world, "TRIGGER_VEVENT", TRIGGER_VEVENT, 0, device)
    time.sleep(A_MOMENT)


def read_queue(world):
    random, events = world.random, world.random.percent(50)
    queues = world.event_queues if events else world.queues
    if not queues:
        return
    fd = random.of(*queues)
    sizes = (0, 7, 8, 12, 12, 16, 20, 24, 36, 100) if events else (0, 40, 40, 80, 120, 39, 41, 400)
    size = random.of(*sizes)
    at = random.of(*[DATA] * 8, FENCE - size)
    ctypes.memset(DATA, 0xEE, 512)
    if random.percent(75):
        got = libc.read(fd, at, size)
        result = outcome(got)
    else:
        position = random.of(0, 0, 8)
        got = libc.pread(fd, at, size, position)
        result = outcome(got), position
    data = ctypes.string_at(at, min(max(got, 0), FENCE - at))
    world.say("read of queue", fd, size, hex(at), result, data.hex())
    if not events:
        found = [word(data, i + 36) for i in range(0, len(data) - 39, FAULT_SIZE)]
        world.cookies += [(fd, cookie) for cookie in found]


def respond(world):
    random = world.random
    if not world.queues:
        return
    fd, data = random.of(*world.queues), b""
    for _ in range(random.of(0, 1, 1, 1, 2, 3)):
        mine = [cookie for queue, cookie in world.cookies if queue == fd]
        cookie = random.of(*mine) if mine and random.percent(80) else random(6)
        data += struct.pack("<II", cookie, random.of(0, 0, 0, 1, 1, 2))
        if (fd, cookie) in world.cookies:
            world.cookies.remove((fd, cookie))
    size = len(data) + random.of(0, 0, 0, 0, 0, 0, 1, 4)
    at = random.of(*[DATA] * 8, FENCE - size)
    ctypes.memmove(at, data, len(data))
    if random.percent(92):
        result = outcome(libc.write(fd, at, size))
    else:
        result = outcome(libc.pwrite(fd, at, size, random.of(0, 8)))
    world.say("write of queue", fd, size, hex(at), result, data.hex())


def poll_queues(world):
    for fd in world.queues + world.event_queues:
        iommufd_calls.tell_poll(world, fd)


def close_queue(world):
    queues = world.random.of(world.queues, world.event_queues)
    if len(queues) > 3:
        fd = queues.pop(world.random(len(queues)))
        os.close(fd)
        world.cookies = [pair for pair in world.cookies if pair[0] != fd]
        world.say("close of queue", fd)


def close_iommufd_rarely(world):
    """With all that would hold it: the offsets of vIOMMUs are again those of the first."""
    if world.random.percent(85):
        return
    for fd in (world.current, *world.queues, *world.event_queues, *world.accesses):
        os.close(fd)
    world.owned.pop(world.current, None)
    world.iommufds.remove(world.current)
    world.queues, world.event_queues, world.accesses = [], [], []
    world.cookies, world.attached, world.pins = [], [], []
    world.say("close", world.current)


def of_one_iommufd(call):
    def made_(world):
        if not world.iommufds:
            fd = os.open("/dev/iommu", os.O_RDWR)
            world.iommufds.append(fd)
            world.say("open", fd)
        world.current = world.iommufds[0]
        call(world)

    return made_


CALLS = {
    of_one_iommufd(call): weight
    for call, weight in {
        ioas: 3,
        memory: 6,
        mock_device: 5,
        attach: 8,
        pasid: 8,
        paging: 6,
        parent: 4,
        nested: 8,
        invalidate: 7,
        check_caches: 3,
        check_map: 2,
        dirty: 12,
        viommu: 4,
        vdevice: 5,
        veventq: 4,
        fault_queue: 3,
        hw_queue: 5,
        map_viommu: 3,
        destroy_some: 14,
        get_hw_info: 2,
        trigger: 8,
        read_queue: 9,
        respond: 5,
        poll_queues: 2,
        close_queue: 3,
        close_iommufd_rarely: 1,
        mock_calls.access: 2,
        mock_calls.access_pages: 4,
        mock_calls.destroy_access_pages: 2,
        mock_calls.access_rw: 2,
        mock_calls.access_replace: 1,
    }.items()
}
