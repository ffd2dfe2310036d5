"""Fixtures of contract tests: where the client is, its memory, how many page tables there are."""

import mmap

import pytest

from iommufs.iommufd.ctx import statistics
from tests.contract.client import PAGE, Memory, ProcessClient
from tests.contract.mock import Mock
from tests.contract.mount_client import MountClient, MountServer
from tests.contract.vfio_client import VfioClient


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = MountServer(tmp_path_factory.mktemp("mount"))
    yield server
    server.end()


@pytest.fixture(scope="session")
def slow_server(tmp_path_factory):
    """One that answers every call in Python."""
    server = MountServer(tmp_path_factory.mktemp("mount"), fast=False)
    yield server
    requests = server.requests()
    assert (requests["ioctls_by_readers"], requests["reads_by_readers"]) == (0, 0)
    server.end()


SERVERS = {"mounted": "server", "mounted, in Python": "slow_server"}
MOUNTED = [pytest.param(name, marks=pytest.mark.mount) for name in SERVERS]


@pytest.fixture(params=["prefetched", "unread", *MOUNTED])
async def client(request):
    """A client; after the test nothing that it made is left."""
    if request.param in SERVERS:
        server = request.getfixturevalue(SERVERS[request.param])
        client, count = MountClient(server.path), server.statistics
    else:
        client, count = ProcessClient(prefetch=request.param == "prefetched"), statistics
    before = count()
    yield client
    await client.close_all()
    after = count()
    assert after == before, "something is left"


@pytest.fixture
async def file(client):
    """A /dev/iommu."""
    return await client.open()


@pytest.fixture(params=[0, 1, 2], ids="{} domains".format)
def domains(request):
    """How many page tables the IOAS under test has."""
    return request.param


@pytest.fixture
async def ioas(client, file, domains):
    """An IOAS with that many page tables."""
    return await client.ioas_with_domains(file, domains)


@pytest.fixture
def memory():
    """16 pages of the client."""
    memory = Memory(16)
    yield memory
    memory.free()


@pytest.fixture
async def vfio(nursery):
    """A client of the default machine's devices; after the test nothing that it made is left."""
    before = statistics()
    client = VfioClient(nursery)
    yield client
    client.close_all()
    assert [device.index for device in client.devices if device.bound] == []
    assert statistics() == before, "something is left"


@pytest.fixture
def read_only_page():
    """Makes client memory that can be read only; returns the address of what is put into it.

    at_the_end  nothing can be read behind it
    """
    pages = []

    def make(data, at_the_end=False):
        memory = Memory(2)
        pages.append(memory)
        offset = PAGE - len(data) if at_the_end else 0
        address = memory.write(offset, data)
        memory.protect(0, mmap.PROT_READ)
        memory.protect(1, 0)
        return address

    yield make
    for memory in pages:
        memory.free()


@pytest.fixture(params=["prefetched", "unread"])
async def mock(request):
    """An iommufd with the mock IOMMU; after the test nothing that it made is left."""
    before = statistics()
    client = ProcessClient(prefetch=request.param == "prefetched", test_ops=True)
    yield Mock(client, await client.open())
    await client.close_all()
    assert statistics() == before, "something is left"
