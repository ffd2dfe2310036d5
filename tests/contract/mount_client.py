"""The client of contract tests that goes through a mount, by system calls alone."""

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import BoundDevice, Client, refused

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]

ROOT = Path(__file__).parents[2]


def ioctl(fd: int, number: int, arg: int) -> int:
    result = _libc.ioctl(fd, number, arg)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class MountServer:
    """The default machine, mounted by a process of its own (mount_server.py)."""

    def __init__(self, path: Path, *, fast: bool = True) -> None:
        """fast: plain calls may be finished without Python."""
        self.path = path
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("mount_server.py")), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "IOMMUFS_FAST": str(int(fast))},
        )
        assert self._line() == "ready"
        self._barrier = os.open(path / "dev/iommu", os.O_RDWR)

    def _line(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise AssertionError(f"the server ended: {self._errors.read()}")
        return json.loads(line)

    def _ask(self) -> Any:
        with refused("ENOTTY"):  # all that was closed by now is released
            ioctl(self._barrier, 0x3BFF, 0)
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._line()

    def statistics(self) -> Any:
        """What lives, once all that was closed by now is released."""
        return self._ask()["now"]

    def requests(self) -> dict[str, int]:
        """How many were answered, and by whom; the call that asks is one for Python."""
        return self._ask()["requests"]

    def end(self, allowed: str = "(?!)") -> None:
        """Ends it; lines of its log that match `allowed` are expected, no others."""
        os.close(self._barrier)
        self._process.stdin.close()
        status = self._process.wait()
        self._process.stdout.close()
        self._errors.seek(0)
        with self._errors:
            said = [line for line in self._errors if not re.search(allowed, line)]
        assert (status, said) == (0, []), f"the server ended with {status} and said: {said}"


class MountClient(Client):
    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: set[int] = set()

    def _add(self, path: str) -> int:
        fd = os.open(self.path / path, os.O_RDWR | os.O_CLOEXEC)
        self._open.add(fd)
        return fd

    async def open(self) -> int:
        return self._add("dev/iommu")

    async def open_container(self) -> int:
        return self._add("dev/vfio/vfio")

    async def close(self, file: int) -> None:
        self._open.remove(file)
        os.close(file)

    async def close_fd(self, fd: int) -> None:
        raise NotImplementedError("outside of a run no ioctl returns descriptors")

    async def close_all(self) -> None:
        for fd in list(self._open):
            await self.close(fd)

    async def ioctl(self, file: int, number: int, arg: int) -> int:
        return ioctl(file, number, arg)

    async def bind(self, file: int, index: int) -> "MountDevice":
        bound = MountDevice(self, self._add(f"dev/vfio/devices/vfio{index}"))
        try:
            await bound.bind(file)
        except OSError:
            await bound.close()
            raise
        return bound


class MountDevice(BoundDevice):
    def __init__(self, client: MountClient, fd: int) -> None:
        self._client = client
        self.fd = fd

    async def _call(self, number: int, struct: str, **fields: Any) -> Any:
        cmd = uapi.new(struct, argsz=uapi.sizeof(struct), **fields)
        await self._client.ioctl(self.fd, number, int(ffi.cast("uintptr_t", cmd)))
        return cmd

    async def bind(self, iommufd: int) -> None:
        cmd = await self._call(
            uapi.VFIO_DEVICE_BIND_IOMMUFD, "vfio_device_bind_iommufd", iommufd=iommufd
        )
        self.devid = cmd.out_devid

    async def attach(self, pt_id: int) -> int:
        cmd = await self._call(
            uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, "vfio_device_attach_iommufd_pt", pt_id=pt_id
        )
        return cmd.pt_id

    async def detach(self) -> None:
        await self._call(uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT, "vfio_device_detach_iommufd_pt")

    async def close(self) -> None:
        await self._client.close(self.fd)
