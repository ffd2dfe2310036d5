"""Functions and devices without a machine around them."""

from collections.abc import Callable

import pytest
import trio

from iommufs.vfio.function import PciFunction
from iommufs.vfio.model import Bar, Description, Model

DESCRIPTION = Description(
    vendor=0x1234,
    device=0x0042,
    class_code=0xFF0000,
    subsystem_vendor=0x1AF4,
    subsystem_device=0x1100,
    bars={0: Bar(4096, mappable=True), 1: Bar(256), 2: Bar(64, io=True)},
    rom=b"\x55\xaa" + bytes(2046),
    msi_vectors=4,
)


class Recorder(Model):
    """A model that answers with the offset it is asked for and writes down what it is told."""

    def __init__(self, host, description=DESCRIPTION):
        super().__init__(host, {})
        self.description = description
        self.calls = []

    def describe(self):
        return self.description

    def open(self):
        self.calls.append(("open",))

    def close(self):
        self.calls.append(("close",))

    def read(self, region, offset, size):
        self.calls.append(("read", region, offset, size))
        return offset

    def write(self, region, offset, size, value):
        self.calls.append(("write", region, offset, size, value))

    def reset(self):
        self.calls.append(("reset",))


def never_spawn(task) -> Callable[[], None]:
    raise AssertionError("nothing runs in the background in this test")


@pytest.fixture
def spawn(nursery):
    """What a server gives to functions: run in a nursery, return what cancels it."""

    def spawn(task):
        scope = trio.CancelScope()

        async def run():
            with scope:
                await task()

        nursery.start_soon(run)
        return scope.cancel

    return spawn


@pytest.fixture
def make_function():
    def make(description=DESCRIPTION, spawn=never_spawn, **options):
        function = PciFunction(
            "0000:00:01.0", lambda host: Recorder(host, description), spawn=spawn, **options
        )
        return function

    return make
