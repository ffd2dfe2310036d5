"""Ioctls with the nth access to the client's memory failing, for n = 1, 2, 3 … until none does.

An ioctl that fails so has done nothing, apart from those that Linux finishes before it answers.
"""

import errno

import pytest

from iommufs.errors import UapiError
from tests.contract.client import ProcessCaller, ProcessClient
from tests.fault.scene import ANSWERED_LAST, CASES, Scene, errno_of


class FailingCaller(ProcessCaller):
    """Fails at the nth access, never if n is 0."""

    async def read_some(self, address, length):
        return b"" if self._client.fails() else await super().read_some(address, length)

    async def write(self, address, data):
        if self._client.fails():
            raise UapiError(errno.EFAULT, "the nth access")
        await super().write(address, data)


class FailingClient(ProcessClient):
    nth = 0

    def fails(self):
        self.nth -= 1
        return self.nth == 0

    @property
    def caller(self):
        return FailingCaller(self)


@pytest.fixture
async def scene():
    scene = Scene(FailingClient(prefetch=False))
    await scene.open()
    yield scene
    await scene.close()


@pytest.mark.parametrize("name", CASES)
async def test_the_nth_access_fails(scene, name):
    for n in range(1, 20):
        before = scene.state()
        scene.client.nth = n
        result = await errno_of(scene.call(name))
        scene.client.nth = 0
        if result == 0:
            assert n > 1, "the argument was not read"
            return
        assert result == errno.EFAULT
        if scene.state() == before:
            continue
        assert name in ANSWERED_LAST, f"something is left by failure {n}"
        # It is done: begin anew, with the next access failing.
        await scene.client.close_all()
        await scene.open()
    raise AssertionError("it never succeeds")
