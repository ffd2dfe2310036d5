"""Migration by VFIO_DEVICE_FEATURE: states, streams, what a device does meanwhile.

The rules are those of vfio_main.c and of the kernel's sample driver mtty, as the guest answered.
"""

import errno
import struct

import pytest
import trio
import trio.testing

from iommufs import uapi
from iommufs._native import ffi
from iommufs.devices.edu import Edu
from iommufs.errors import UapiError
from iommufs.vfio import migration
from iommufs.vfio.model import Description, Migration, Model
from tests.contract.client import refused
from tests.contract.migration_client import (
    DATA_SIZE,
    ERROR,
    GET,
    INFO_V2,
    MIGRATION,
    PRE_COPY,
    PRE_COPY_P2P,
    RESUMING,
    RUNNING,
    RUNNING_P2P,
    SET,
    STATE,
    STOP,
    STOP_COPY,
    migrated,
    read_all,
)
from tests.contract.vfio_client import CONFIG, EDU

ALL_STATES = range(8)
P2P, EARLY = uapi.VFIO_MIGRATION_P2P, uapi.VFIO_MIGRATION_PRE_COPY

# vfio_mig_get_next_state() of a device that can do everything: the next state on the way from one
# (by row) to another (by column, in the order of their numbers from STOP on). 0: there is no way.
NEXT = {
    STOP: (1, 5, 3, 4, 5, 5, 5),
    RUNNING: (5, 2, 5, 5, 5, 6, 5),
    STOP_COPY: (1, 1, 3, 1, 1, 0, 0),
    RESUMING: (1, 1, 1, 4, 1, 1, 1),
    RUNNING_P2P: (1, 2, 1, 1, 5, 2, 7),
    PRE_COPY: (2, 2, 7, 2, 2, 6, 7),
    PRE_COPY_P2P: (5, 5, 3, 5, 5, 6, 7),
}
NEEDS = {RUNNING_P2P: P2P, PRE_COPY: EARLY, PRE_COPY_P2P: P2P | EARLY}


def linux_next(flags, state, target):
    """As the kernel does: by the table, past what the device lacks."""
    if target not in NEXT or NEEDS.get(target, 0) & ~flags:
        return None
    state = NEXT[state][target - 1]
    while state and NEEDS.get(state, 0) & ~flags:
        state = NEXT[state][target - 1]
    return state or None


@pytest.mark.parametrize("flags", [1, 1 | P2P, 1 | EARLY, 1 | P2P | EARLY])
def test_every_arc_is_linux(flags):
    for state in NEXT:
        if NEEDS.get(state, 0) & ~flags:
            continue
        for target in range(10):
            expected = linux_next(flags, state, target)
            if expected is None:
                with pytest.raises(UapiError) as info:
                    migration.next_state(flags, state, target)
                assert info.value.errno == errno.EINVAL
            else:
                assert migration.next_state(flags, state, target) == expected, (state, target)


def test_out_of_error_there_is_no_way():
    for target in ALL_STATES:
        with pytest.raises(UapiError):
            migration.next_state(7, ERROR, target)


# ---- what can be asked


async def test_the_default_devices_cannot_migrate(vfio):
    df = await vfio.bound(EDU)
    for feature in (MIGRATION, STATE, DATA_SIZE):
        with refused("ENOTTY"):
            await vfio.call(
                df, uapi.VFIO_DEVICE_FEATURE, "vfio_device_feature", flags=GET | feature
            )


async def test_what_can_be_probed(vfio):
    device = await migrated(vfio)
    operations = {MIGRATION: GET, STATE: GET | SET, DATA_SIZE: GET, INFO_V2: SET}
    for feature, possible in operations.items():
        for asked in (0, GET, SET, GET | SET):
            flags = 1 << 18 | asked | feature
            if asked & ~possible:
                with refused("EINVAL"):
                    await device.feature(flags)
            else:
                await device.feature(flags)


@pytest.mark.parametrize(("feature", "size"), [(MIGRATION, 8), (STATE, 8), (DATA_SIZE, 8)])
async def test_room_for_less_is_einval(vfio, feature, size):
    device = await migrated(vfio)
    await device.feature(GET | feature, bytes(size))
    with refused("EINVAL"):
        await device.feature(GET | feature, bytes(size - 1))


async def test_flags_say_what_the_model_can(vfio):
    device = await migrated(vfio)
    assert await device.feature(GET | MIGRATION, bytes(8)) == struct.pack("<Q", 7)


@pytest.mark.parametrize("state", [ERROR, 8, 0xFFFFFFFF])
async def test_states_that_cannot_be_set_are_einval_and_there_is_no_stream(vfio, state):
    device = await migrated(vfio)
    with refused("EINVAL"):
        await device.go(state)
    assert vfio.tail == struct.pack("<Ii", state, -1)
    assert await device.state() == RUNNING


@pytest.mark.parametrize(
    ("path", "opens"),
    [
        ((RUNNING,), None),
        ((RUNNING_P2P,), None),
        ((STOP,), None),
        ((STOP_COPY,), "r"),
        ((RESUMING,), "w"),
        ((PRE_COPY,), "r"),
        ((PRE_COPY_P2P,), "r"),
        ((PRE_COPY, PRE_COPY_P2P), None),
        ((PRE_COPY, STOP_COPY), None),
        ((PRE_COPY_P2P, STOP_COPY), None),
        ((PRE_COPY_P2P, PRE_COPY), None),
        ((PRE_COPY, RESUMING), "w"),
        ((STOP_COPY, RESUMING), "w"),
        ((STOP_COPY, STOP), None),
        ((STOP, PRE_COPY), "r"),
    ],
)
async def test_which_ways_end_with_a_stream(vfio, path, opens):
    device = await migrated(vfio)
    for state in path:
        stream = await device.go(state)
    assert await device.state() == path[-1]
    kinds = {None: type(None), "r": migration.SavingFile, "w": migration.ResumingFile}
    assert isinstance(stream, kinds[opens])


@pytest.mark.parametrize("target", [PRE_COPY, PRE_COPY_P2P])
async def test_copying_early_does_not_come_after_stop_copy(vfio, target):
    device = await migrated(vfio)
    await device.go(STOP_COPY)
    with refused("EINVAL"):
        await device.go(target)
    assert await device.state() == STOP_COPY


# ---- streams


async def test_the_stream_is_as_long_as_it_was_said_to_be(vfio):
    device = await migrated(vfio)
    size = await device.data_size()
    data = await read_all(vfio, await device.go(STOP_COPY))
    assert len(data) == size


async def test_a_state_that_is_left_ends_its_stream(vfio):
    device = await migrated(vfio)
    stream = await device.go(STOP_COPY)
    await device.go(STOP)
    with refused("ENODEV"):
        await vfio.pread(stream, 8, 0)
    stream = await device.go(RESUMING)
    await vfio.pwrite(stream, b"iofs", 0)
    with refused("EINVAL"):  # it is not whole
        await device.go(STOP)
    assert await device.state() == RESUMING
    device.df.function.reset_function()
    assert await device.state() == RUNNING
    with refused("ENODEV"):
        await vfio.pwrite(stream, b"more", 0)


async def test_the_end_while_it_copies_early_is_enomsg(vfio):
    device = await migrated(vfio)
    stream = await device.go(PRE_COPY)
    flags, initial, dirty = await device.info(stream)
    assert (flags, dirty) == (0x55, 0)
    assert initial > 4096
    data = b""
    while len(data) < initial:
        data += await vfio.pread(stream, 1000, 0)
    assert len(data) == initial
    with refused("ENOMSG"):
        await vfio.pread(stream, 1, 0)
    assert await device.info(stream) == (0x55, 0, 0)
    await device.go(STOP_COPY)
    rest = await read_all(vfio, stream)
    assert 0 < len(rest) < 4096  # the buffer is there already


async def test_flags_of_the_info_are_for_who_knows_them(vfio):
    device = await migrated(vfio)
    stream = await device.go(PRE_COPY)
    assert (await device.info(stream))[0] == 0x55
    await device.feature(SET | INFO_V2)
    assert (await device.info(stream))[0] == 0


async def test_the_info_is_of_the_states_that_copy_early(vfio):
    device = await migrated(vfio)
    stream = await device.go(PRE_COPY)
    with refused("EINVAL"):
        await device.info(stream, argsz=23)
    with refused("ENOTTY"):
        await vfio.ioctl(stream, uapi.VFIO_DEVICE_GET_INFO)
    with refused("EFAULT"):
        await vfio.ioctl(stream, uapi.VFIO_MIG_GET_PRECOPY_INFO, 0)
    await device.go(RUNNING)
    with refused("EINVAL"):
        await device.info(stream)
    await device.go(PRE_COPY)
    with refused("ENODEV"):
        await device.info(stream)


async def test_the_stream_to_write_has_no_ioctl(vfio):
    device = await migrated(vfio)
    stream = await device.go(RESUMING)
    with refused("ENOTTY"):
        await device.info(stream)


# ---- the state arrives


LIVENESS, SOURCE, TARGET = 0x04, 0x80, 0x88


async def carry(vfio, source, target, *, early=False):
    stream = await source.go(PRE_COPY if early else STOP_COPY)
    data = b""
    if early:
        with refused("ENOMSG"):
            while True:
                data += await vfio.pread(stream, 500, 0)
        assert await source.go(STOP_COPY) is None
    data += await read_all(vfio, stream)
    stream = await target.go(RESUMING)
    for at in range(0, len(data), 700):
        await vfio.pwrite(stream, data[at : at + 700], 0)
    await target.go(RUNNING)
    return data


@pytest.mark.parametrize("early", [False, True])
async def test_registers_buffer_and_line_arrive(vfio, early):
    source, target = await migrated(vfio), await migrated(vfio, 0x1E)
    await vfio.pwrite(source.df, b"\1\2\3\4", LIVENESS)
    await vfio.pwrite(source.df, bytes(range(8)), SOURCE)
    await vfio.pwrite(source.df, b"\x10\0\0\0", 0x60)
    source.df.function.model._buffer[:4] = b"abcd"
    await carry(vfio, source, target, early=early)
    assert await vfio.pread(target.df, 4, LIVENESS) == bytes(255 - b for b in b"\1\2\3\4")
    assert await vfio.pread(target.df, 8, SOURCE) == bytes(range(8))
    assert target.df.function.model._buffer[:4] == b"abcd"
    assert target.df.function.intx_level
    assert await target.state() == RUNNING


async def test_what_changes_after_it_was_copied_is_copied_again(vfio):
    source, target = await migrated(vfio), await migrated(vfio, 0x1E)
    stream = await source.go(PRE_COPY)
    data = b""
    with refused("ENOMSG"):
        while True:
            data += await vfio.pread(stream, 5000, 0)
    source.df.function.model._buffer[:4] = b"late"
    _, initial, dirty = await source.info(stream)
    assert initial == 0
    assert dirty > 4096
    await source.go(STOP_COPY)
    data += await read_all(vfio, stream)
    stream = await target.go(RESUMING)
    await vfio.pwrite(stream, data, 0)
    await target.go(STOP)
    assert target.df.function.model._buffer[:4] == b"late"


async def test_a_stream_of_another_device_is_einval_at_once(vfio):
    source = await migrated(vfio)
    other = await migrated(vfio, 0x1E, Counter)
    data = await read_all(vfio, await other.go(STOP_COPY))
    stream = await source.go(RESUMING)
    with refused("EINVAL"):
        await vfio.pwrite(stream, data, 0)


@pytest.mark.parametrize("cut", [1, 20, 30, 100])
async def test_a_stream_that_is_cut_off_or_has_more_is_einval(vfio, cut):
    source, target = await migrated(vfio), await migrated(vfio, 0x1E)
    data = await read_all(vfio, await source.go(STOP_COPY))
    for wrong in (data[:-cut], data + data[-cut:]):
        stream = await target.go(RESUMING)
        await vfio.pwrite(stream, wrong, 0)
        with refused("EINVAL"):
            await target.go(STOP)
        assert await target.state() == RESUMING
        target.df.function.reset_function()


# ---- what the device does meanwhile


class Counter(Model):
    """Counts in the background; stopped, it says by how far it had come. `wrong`: what fails."""

    def __init__(self, host, wrong=""):
        super().__init__(host, {})
        self.wrong, self.value, self.calls = wrong, 0, []

    def describe(self):
        return Description(vendor=1, device=2, class_code=0, migration=Migration())

    def _call(self, name):
        self.calls.append(name)
        if name == self.wrong:
            raise RuntimeError(name)

    def run(self):
        self._call("run")

    def stop(self):
        self._call("stop")

    def save(self, *, after_early):
        self._call("save")
        return self.value.to_bytes(4, "little")

    def load(self, data):
        self._call("load")
        if len(data) != 4:
            raise ValueError("four bytes")
        self.value = int.from_bytes(data, "little")


async def test_without_options_there_are_four_states(vfio):
    device = await migrated(vfio, make_model=Counter)
    assert await device.feature(GET | MIGRATION, bytes(8)) == struct.pack("<Q", 1)
    with refused("EINVAL"):
        await device.feature(SET | INFO_V2)
    for state in (RUNNING_P2P, PRE_COPY, PRE_COPY_P2P):
        with refused("EINVAL"):
            await device.go(state)
    await device.go(STOP_COPY)
    await device.go(RUNNING)
    assert device.df.function.model.calls == ["stop", "save", "run"]


@pytest.mark.logs("a device model failed")
@pytest.mark.parametrize("wrong", ["stop", "save", "run"])
async def test_a_model_that_fails_is_in_error_until_reset(vfio, wrong):
    device = await migrated(vfio, make_model=lambda host: Counter(host, wrong))
    with refused("EIO"):
        await device.go(STOP_COPY)
        await device.go(RUNNING)
    assert await device.state() == ERROR
    for target in (STOP, RUNNING, STOP_COPY, RESUMING):
        with refused("EINVAL"):
            await device.go(target)
    device.df.function.model.wrong = ""
    device.df.function.reset_function()
    assert await device.state() == RUNNING
    await device.go(STOP)


async def test_no_dma_in_stop_and_it_goes_on_in_running(vfio, memory):
    """A transfer that a stopped device is told to do waits; one on the other side too."""
    device = await migrated(vfio)
    ctx = device.df.iommu_device.ctx
    ioas = await vfio.ioas(ctx)
    await vfio.attach(device.df, ioas)
    cmd = uapi.new(
        "iommu_ioas_map", size=uapi.sizeof("iommu_ioas_map"), flags=7, ioas_id=ioas,
        user_va=memory.address, length=4096, iova=0x1000,
    )  # fmt: skip
    await vfio.ioctl(ctx, uapi.IOMMU_IOAS_MAP, int(ffi.cast("uintptr_t", cmd)))
    await vfio.pwrite(device.df, b"\x06\0", CONFIG + 4)
    device.df.function.model._buffer[:4] = b"edu!"
    await device.go(RUNNING_P2P)
    for register, value in ((SOURCE, 0x40000), (TARGET, 0x1000), (0x90, 4), (0x98, 3)):
        await vfio.pwrite(device.df, value.to_bytes(8, "little"), register)
    await trio.testing.wait_all_tasks_blocked()
    assert (await vfio.pread(device.df, 8, 0x98))[0] == 3
    await device.go(STOP_COPY)
    assert memory[0:4] == bytes(4)
    await device.go(RUNNING)
    with trio.fail_after(10):
        while (await vfio.pread(device.df, 8, 0x98))[0] & 1:
            await trio.lowlevel.checkpoint()
    assert memory[0:4] == b"edu!"


async def test_closing_ends_it(vfio):
    device = await migrated(vfio)
    stream = await device.go(STOP_COPY)
    vfio.close(device.df)
    with refused("ENODEV"):
        await vfio.pread(stream, 1, 0)
    again = await vfio.bound(device.df.device.index)
    assert again.function.migration.state == RUNNING


async def test_the_option_is_true_or_false():
    with pytest.raises(ValueError, match="true or false"):
        Edu(None, {"migration": 1})
