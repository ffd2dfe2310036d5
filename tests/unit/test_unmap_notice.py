"""Unmapping what a device without an IOMMU has pinned: it is told to let go."""

import pytest

from iommufs._native import ffi, lib
from iommufs.errors import check
from iommufs.iommufd.ioas import Ioas
from tests.contract.client import PAGE, U64_MAX, Memory, ProcessClient, refused

IOVA = 0x10000


class Access:
    """Pins two pages; what it is told of an unmap is in `notices`."""

    def __init__(self, ioas, lets_go):
        self.notices = []
        self._lets_go = lets_go
        self._pinned = True
        out = ffi.new("struct iofs_access **")
        check(lib.iofs_access_new(1, 0, out))
        self._access = out[0]
        check(lib.iofs_access_attach(self._access, ioas.iopt))
        check(lib.iofs_access_pin(self._access, IOVA, 2 * PAGE, lib.IOFS_READ))
        ioas.accesses.append(self)
        self._ioas = ioas

    def unmap(self, iova, length):
        self.notices.append((iova, length))
        if self._lets_go:
            self.unpin()

    def unpin(self):
        if self._pinned:
            check(lib.iofs_access_unpin(self._access, IOVA, 2 * PAGE))
            self._pinned = False

    def close(self):
        self.unpin()
        self._ioas.accesses.remove(self)
        check(lib.iofs_access_detach(self._access))
        lib.iofs_access_put(self._access)


@pytest.fixture
async def client():
    client = ProcessClient()
    yield client
    await client.close_all()


@pytest.fixture
def memory():
    memory = Memory(4)
    yield memory
    memory.free()


@pytest.mark.parametrize("everything", [False, True])
async def test_it_lets_go(client, memory, everything):
    file = await client.open()
    ioas = await client.ioas_alloc(file)
    await client.map(file, ioas, memory.address, 3 * PAGE, IOVA)
    access = Access(file.objects.find(ioas, Ioas), lets_go=True)
    where = (0, U64_MAX) if everything else (IOVA, 3 * PAGE)
    assert await client.unmap(file, ioas, *where) == 3 * PAGE
    assert access.notices == [(IOVA, 3 * PAGE)], "the whole mapping is told"
    access.close()


async def test_it_never_lets_go(client, memory):
    file = await client.open()
    ioas = await client.ioas_alloc(file)
    await client.map(file, ioas, memory.address, PAGE, IOVA - PAGE)
    await client.map(file, ioas, memory.address, 2 * PAGE, IOVA)
    access = Access(file.objects.find(ioas, Ioas), lets_go=False)
    with refused("EDEADLK"):
        await client.unmap(file, ioas, 0, U64_MAX)
    assert access.notices == [(IOVA, 2 * PAGE)] * 100
    access.unpin()
    assert await client.unmap(file, ioas, 0, U64_MAX) == 2 * PAGE, "the first one is gone"
    access.close()
