"""VFIO groups: /dev/vfio/N, the older way for drivers to get at devices.

A group is open once at a time, and not while a device of it is bound as a cdev. Its container is an
iommufd: each device is bound to it and attached to its compatibility IOAS when the first descriptor
of the device is made, and stays so until the last one is closed, whatever becomes of the group's
file and of its container meanwhile.

Not here: the calls on the container (iommufd/vfio_compat.py) and on the devices (device.py).
"""

from __future__ import annotations

import errno
import re
from typing import Any

from iommufs import uapi
from iommufs.caller import Caller
from iommufs.errors import UapiError
from iommufs.files import OpenFiles
from iommufs.iommufd.ctx import Ctx
from iommufs.iommufd.iommu import IommuGroup
from iommufs.iommufd.vfio_compat import create_compat_ioas
from iommufs.limits import DEFAULT_POLLMASK
from iommufs.ucmd import Ucmd
from iommufs.vfio.bind import match_token

LONGEST_NAME = 4096  # bytes, the NUL among them
VF_TOKEN = b"vf_token="
UUID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class VfioGroup:
    """The VFIO devices of one IOMMU group.

    files    where fds of clients are looked up
    devices  VfioDevices, which add themselves
    opened   the open file; None: nobody has the group open
    gone     all its devices were taken from vfio-pci
    """

    def __init__(self, iommu_group: IommuGroup, files: OpenFiles) -> None:
        self.iommu_group = iommu_group
        self.files = files
        self.devices: list[Any] = []
        self.opened: GroupFile | None = None
        self.gone = False

    @property
    def number(self) -> int:
        return self.iommu_group.number

    def withdraw(self) -> None:
        """Its last device is gone: what is open of it is of no use any more."""
        self.gone = True

    def open(self, flags: int = 0) -> GroupFile:
        """ENODEV: it is gone; EBUSY: it is open, or a device is bound as a cdev.

        Source: vfio_group_fops_open()
        """
        self.check_there()
        if any(device.bound and not device.bound.by_group for device in self.devices):
            raise UapiError(errno.EBUSY, f"a device of group {self.number} is bound as a cdev")
        self.check_closed()
        self.opened = GroupFile(self)
        return self.opened

    def check_there(self) -> None:
        """ENODEV: it is gone."""
        if self.gone:
            raise UapiError(errno.ENODEV, f"group {self.number} is gone")

    def check_closed(self) -> None:
        """EBUSY: it is open."""
        if self.opened:
            raise UapiError(errno.EBUSY, f"group {self.number} is open")

    def find(self, request: bytes) -> Any:
        """The device of a request: its address, perhaps a token; ENODEV, else as match_token()."""
        address, space, options = request.partition(b" ")
        for device in self.devices:
            if not device.knows_tokens:
                if device.function.address.encode() == request:
                    return device
            elif device.function.address.encode() == address:
                match_token(device, _token(options) if space else None)
                return device
        raise UapiError(errno.ENODEV, f"group {self.number} has no device {request!r}")


def _token(options: bytes) -> bytes | None:
    """The token among the words behind an address; EINVAL: anything else, or not the form of one.

    Whatever follows a token begins the next word, with or without a space (vfio_pci_core_match()).
    """
    token = None
    while options := options.lstrip(b" "):
        found = UUID.match(options, len(VF_TOKEN))
        if token is not None or not options.startswith(VF_TOKEN) or not found:
            raise UapiError(errno.EINVAL, f"{options!r} is not a token")
        token = bytes.fromhex(found[0].replace(b"-", b"").decode())
        options = options[found.end() :]
    return token


class GroupFile:
    """The open file of a group. `ctx`: its container, which it holds."""

    table = "group"

    def __init__(self, group: VfioGroup) -> None:
        self.group = group
        self.ctx: Ctx | None = None

    def set_container(self, ctx: Ctx) -> None:
        """The context has a compatibility IOAS from now on."""
        create_compat_ioas(ctx)
        ctx.get()
        self.ctx = ctx

    def unset_container(self) -> None:
        if self.ctx is not None:
            self.ctx.put()
            self.ctx = None

    async def read(self, offset: int, size: int) -> bytes:
        raise UapiError(errno.EINVAL, "a group is not read")

    async def write(self, offset: int, data: bytes) -> int:
        raise UapiError(errno.EINVAL, "a group is not written")

    def poll(self) -> int:
        return DEFAULT_POLLMASK

    def release(self) -> None:
        """Devices that are open stay so."""
        self.unset_container()
        self.group.opened = None


async def group_get_status(ucmd: Ucmd) -> None:
    """Whether the group can be used, and is (VFIO_GROUP_GET_STATUS).

    Out:    flags  CONTAINER_SET with VIABLE; without a container VIABLE if nobody owns its DMA
    Errors: EINVAL  argsz       EFAULT      ENODEV  the group is gone
    Source: vfio_group_ioctl_get_status()
    """
    file, cmd = ucmd.file, ucmd.cmd
    file.group.check_there()
    cmd.flags = 0
    if file.ctx is not None:
        cmd.flags = uapi.VFIO_GROUP_FLAGS_CONTAINER_SET | uapi.VFIO_GROUP_FLAGS_VIABLE
    elif not file.group.iommu_group.owned:
        cmd.flags = uapi.VFIO_GROUP_FLAGS_VIABLE
    await ucmd.respond()


async def group_set_container(ucmd: Ucmd) -> None:
    """Give the group its container (VFIO_GROUP_SET_CONTAINER).

    In:     a pointer to the fd of an iommufd
    Errors: EFAULT  EBADF  not an open fd       EINVAL  it has one      EBADFD  not an iommufd
            ENODEV  the group is gone
    Source: vfio_group_ioctl_set_container()
    """
    file = ucmd.file
    fd = int.from_bytes(await ucmd.caller.read(ucmd.arg, 4), "little", signed=True)
    ctx = file.group.files.resolve(ucmd.caller, fd)
    if file.ctx is not None:
        raise UapiError(errno.EINVAL, "the group has a container")
    file.group.check_there()
    if not isinstance(ctx, Ctx):
        raise UapiError(errno.EBADFD, f"fd {fd} is not an iommufd")
    file.set_container(ctx)


def group_unset_container(ucmd: Ucmd) -> None:
    """Take the container away (VFIO_GROUP_UNSET_CONTAINER).

    Errors: EINVAL  there is none
    After:  devices that are open stay bound to it.
    Source: vfio_group_ioctl_unset_container()
    """
    if ucmd.file.ctx is None:
        raise UapiError(errno.EINVAL, "the group has no container")
    ucmd.file.unset_container()


async def group_get_device_fd(ucmd: Ucmd) -> int:
    """A descriptor of a device, the first or one more (VFIO_GROUP_GET_DEVICE_FD).

    In:     a pointer to "0000:00:06.0", with " vf_token=UUID" where one is needed
    Errors: EFAULT  EINVAL  longer than a page; words that are not a token; no container
            ENODEV  no such device; the container has no compatibility IOAS
            EOPNOTSUPP  no fd can be given to the caller    EMFILE  it has no more
            EPERM   another device of the group is bound to another iommufd
            else as BIND and ATTACH
    Source: vfio_group_ioctl_get_device_fd()
    """
    file = ucmd.file
    device = file.group.find(await _read_string(ucmd.caller, ucmd.arg))
    ucmd.caller.check_fd_available()
    if file.ctx is None:
        raise UapiError(errno.EINVAL, "the group has no container")
    return await ucmd.install_fd(device.open_by_group(file.ctx))


async def _read_string(caller: Caller, address: int) -> bytes:
    """Bytes up to a NUL; EFAULT, EINVAL: it does not end within a page's length."""
    data = await caller.read_some(address, LONGEST_NAME)
    string, nul, _ = data.partition(b"\0")
    if nul:
        return string
    if len(data) < LONGEST_NAME:
        raise UapiError(errno.EFAULT, f"client memory at {address + len(data):#x}")
    raise UapiError(errno.EINVAL, "the name is longer than a page")
