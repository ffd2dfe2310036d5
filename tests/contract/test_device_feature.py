"""VFIO_DEVICE_FEATURE and IOEVENTFD; source: oracle probe, sections features and ioeventfd."""

import os

import pytest
from trio.testing import wait_all_tasks_blocked

from iommufs import uapi
from tests.contract.client import refused
from tests.contract.vfio_client import ALL, CONFIG, EDU, IGB, NVME

GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18
ENTRY, WAKEUP, EXIT, DMA_BUF, PRECOPY = 3, 4, 5, 11, 12
OPERATIONS = {ENTRY: SET, WAKEUP: SET, EXIT: SET, DMA_BUF: GET}


async def feature(vfio, df, flags, data=b"", **fields):
    await vfio.call(
        df, uapi.VFIO_DEVICE_FEATURE, "vfio_device_feature", tail=data, flags=flags, **fields
    )


@pytest.mark.parametrize("index", ALL)
async def test_what_can_be_probed(vfio, index):
    df = await vfio.bound(index)
    operations = {**OPERATIONS, 0: SET} if index == IGB else OPERATIONS
    for number in range(16):
        for asked in (0, GET, SET, GET | SET):
            flags = PROBE | asked | number
            if number == PRECOPY:
                with refused("EINVAL"):
                    await feature(vfio, df, flags)
            elif number not in operations:
                with refused("ENOTTY"):
                    await feature(vfio, df, flags)
            elif asked & ~operations[number]:
                with refused("EINVAL"):
                    await feature(vfio, df, flags)
            else:
                await feature(vfio, df, flags)


@pytest.mark.parametrize(
    ("flags", "fields", "errno"),
    [
        (PROBE | GET, {"argsz": 7}, "EINVAL"),
        (1 << 19 | PROBE, {}, "EINVAL"),
        (GET | SET | 1, {}, "EINVAL"),
        (GET | SET | ENTRY, {}, "EINVAL"),
        (1, {}, "ENOTTY"),
        (ENTRY, {}, "EINVAL"),
        (GET | 10, {}, "ENOTTY"),
        (PROBE | 0xFFFF, {}, "ENOTTY"),
        (SET | WAKEUP, {}, "EINVAL"),
        (GET | DMA_BUF, {"argsz": 23}, "EINVAL"),
    ],
)
async def test_what_is_refused(vfio, flags, fields, errno):
    df = await vfio.bound(NVME)
    with refused(errno):
        await feature(vfio, df, flags, **fields)


async def test_the_token_is_for_functions_that_can_have_virtual_ones(vfio):
    df = await vfio.bound(IGB)
    token = bytes(range(16))
    await feature(vfio, df, SET, token)
    assert df.device.vf_token == token
    with refused("EINVAL"):
        await feature(vfio, df, SET, token[:15])


# ---- IOEVENTFD

MSIX_TABLE, PENDING_BITS = 0x2000, 0x3000


async def ioeventfd(vfio, df, fd, flags=4, offset=0x1000, data=0, **fields):
    await vfio.call(
        df, uapi.VFIO_DEVICE_IOEVENTFD, "vfio_device_ioeventfd",
        fd=fd, flags=flags, offset=offset, data=data, **fields,
    )  # fmt: skip


async def test_a_store_is_tied_once_and_untied_once(vfio):
    df = await vfio.bound(NVME)
    e = vfio.eventfd()
    await ioeventfd(vfio, df, e)
    with refused("EEXIST"):
        await ioeventfd(vfio, df, e)
    await ioeventfd(vfio, df, e, flags=8)
    await ioeventfd(vfio, df, e, offset=0x1002)
    await ioeventfd(vfio, df, -1)
    with refused("ENODEV"):
        await ioeventfd(vfio, df, -1)


@pytest.mark.parametrize(
    ("fields", "errno"),
    [
        ({"flags": 3}, "EINVAL"),
        ({"flags": 0}, "EINVAL"),
        ({"flags": 16}, "EINVAL"),
        ({"fd": -2}, "EINVAL"),
        ({"fd": 9999}, "EBADF"),
        ({"offset": CONFIG}, "EINVAL"),
        ({"offset": 1 << 63}, "EINVAL"),
        ({"offset": 0x3FFE}, "EINVAL"),
        ({"offset": MSIX_TABLE}, "EINVAL"),
        ({"offset": MSIX_TABLE - 2}, "EINVAL"),
        ({"argsz": 27}, "EINVAL"),
    ],
)
async def test_what_cannot_be_tied(vfio, fields, errno):
    df = await vfio.bound(NVME)
    with refused(errno):
        await ioeventfd(vfio, df, **{"fd": vfio.eventfd(), **fields})


async def test_the_pending_bits_can(vfio):
    df = await vfio.bound(NVME)
    await ioeventfd(vfio, df, vfio.eventfd(), offset=PENDING_BITS, argsz=31)


async def test_the_store_happens_when_the_client_writes(vfio):
    df = await vfio.bound(EDU)
    e = vfio.eventfd()
    await ioeventfd(vfio, df, e, offset=4, data=0xFFFFFFFF_0000FFFF)
    await wait_all_tasks_blocked()
    os.eventfd_write(e, 1)
    await wait_all_tasks_blocked()
    assert await vfio.pread(df, 4, 4) == bytes.fromhex("0000ffff")
    vfio.close(df)
    await wait_all_tasks_blocked()
