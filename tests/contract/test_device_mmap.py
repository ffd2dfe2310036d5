"""mmap() of a device file, as far as it is asked about: what Linux refuses is refused."""

import pytest

from tests.contract.client import PAGE, refused
from tests.contract.vfio_client import EDU, NVME

READ, WRITE = 1, 2
EDU_BAR0 = 1 << 20
REGION = [index << 40 for index in range(10)]


def check(vfio, df, length, offset):
    try:
        df.check_mmap(vfio.caller, -1, length, READ | WRITE, offset)
    except Exception as error:
        raise OSError(error.errno, str(error)) from error


@pytest.mark.parametrize(
    ("length", "offset"),
    [(PAGE, 0), (1, 0), (EDU_BAR0, 0), (EDU_BAR0 - 1, 0), (PAGE, EDU_BAR0 - PAGE)],
)
async def test_parts_of_a_bar(vfio, length, offset):
    check(vfio, await vfio.bound(EDU), length, offset)


@pytest.mark.parametrize(
    ("length", "offset"),
    [
        (EDU_BAR0 + 1, 0),
        (2 * PAGE, EDU_BAR0 - PAGE),
        (PAGE, EDU_BAR0),
        (PAGE, REGION[1]),
        (PAGE, REGION[6]),
        (PAGE, REGION[7]),
        (PAGE, REGION[8]),
        (PAGE, REGION[9]),
        (PAGE, 2**63),
    ],
)
async def test_everything_else_is_einval(vfio, length, offset):
    df = await vfio.bound(EDU)
    with refused("EINVAL"):
        check(vfio, df, length, offset)


async def test_before_bind_it_is_einval(vfio):
    with refused("EINVAL"):
        check(vfio, vfio.open(NVME), PAGE, 0)
