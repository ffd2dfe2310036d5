"""Descriptors cannot be returned to callers that came through FUSE."""

import errno
import os
from types import SimpleNamespace

import pytest

from iommufs import caller
from iommufs.errors import UapiError
from iommufs.ucmd import Ucmd


@pytest.mark.logs("iommufs run")
async def test_without_the_launcher_it_is_eopnotsupp_and_one_line(log_lines):
    caller._tell_of_launcher.cache_clear()
    ucmd = Ucmd(caller.Caller(os.getpid()), None, 0)
    released = []
    file = SimpleNamespace(release=lambda: released.append(1))
    for _ in range(3):
        with pytest.raises(UapiError) as failure:
            await ucmd.install_fd(file)
        assert failure.value.errno == errno.EOPNOTSUPP
        with pytest.raises(UapiError) as failure:
            await ucmd.respond_with_fd(file, "out_fault_fd")
        assert failure.value.errno == errno.EOPNOTSUPP
    assert len(log_lines) == 1
    assert len(released) == 6
