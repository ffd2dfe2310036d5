"""Binding a device to an iommufd, and its DMA to a page table."""

import errno
from typing import Any

from iommufs import uapi
from iommufs._native import ffi
from iommufs.errors import UapiError
from iommufs.iommufd.ctx import Ctx
from iommufs.ucmd import Ucmd


def match_token(device: Any, token: bytes | None) -> None:
    """A client opens a device with a token, or without.

    The physical function is opened with the token that its virtual functions will need, until
    they are in use: then with that one. Its own use of one is not needed.
    Errors: EACCES  not the token, or none      EINVAL  the device is not one with a token
    Source: vfio_pci_core_match_token_uuid()
    """
    if device.function.vf_ids is not None:
        if device.pf is not None:
            _check_token(device.pf, token)
        elif token is not None:
            raise UapiError(errno.EINVAL, "the physical function is not vfio-pci's")
    elif device.has_vf_token:
        if device.vf_users:
            _check_token(device, token)
        elif token is not None:
            device.vf_token = token
    elif token is not None:
        raise UapiError(errno.EINVAL, "the device has no token")


def _check_token(pf: Any, token: bytes | None) -> None:
    if token != pf.vf_token:
        raise UapiError(errno.EACCES, f"not the token of {pf.function.address}")


async def device_bind_iommufd(ucmd: Ucmd) -> None:
    """Bind the device to an iommufd (VFIO_DEVICE_BIND_IOMMUFD).

    In:     iommufd  an fd of the caller      flags, token_uuid_ptr  for virtual functions
    Out:    out_devid  the id of the device in the iommufd
    Errors: EINVAL  unknown flag; negative fd; bound already, through this file or another; a token
                    that the device does not know; the file came from a group
            EACCES  not the token of the virtual function, or of those in use
            EBUSY   the group is open                  EBADF   not an open fd
            EBADFD  not an iommufd                     EPERM   the group is another iommufd's
            EFAULT  token or out_devid; undone then
    Source: vfio_df_ioctl_bind_iommufd()
    """
    df, cmd = ucmd.file, ucmd.cmd
    if cmd.iommufd < 0 or cmd.flags & ~uapi.VFIO_DEVICE_BIND_FLAG_TOKEN:
        raise UapiError(errno.EINVAL, f"flags {cmd.flags:#x}, iommufd {cmd.iommufd}")
    if df.by_group:
        raise UapiError(errno.EINVAL, "the file came from a group")
    df.device.group.check_closed()
    if df.device.bound is df:
        raise UapiError(errno.EINVAL, "bound already")
    token = None
    if cmd.flags & uapi.VFIO_DEVICE_BIND_FLAG_TOKEN:
        if not df.device.knows_tokens:
            raise UapiError(errno.EINVAL, "no device of this kind has a token")
        token = await ucmd.caller.read(cmd.token_uuid_ptr, 16)
    if df.device.knows_tokens:
        match_token(df.device, token)
    ctx = df.device.files.resolve(ucmd.caller, cmd.iommufd)
    if not isinstance(ctx, Ctx):
        raise UapiError(errno.EBADFD, f"fd {cmd.iommufd} is not an iommufd")
    df.bind(ctx)
    try:
        cmd.out_devid = df.iommu_device.id
        await ucmd.write_field("out_devid")
    except BaseException:
        df.unbind()
        raise
    df.grant()


async def _pasid(ucmd: Ucmd, flag: int) -> int | None:
    """The PASID that the call is about, None without the flag; EINVAL, EFAULT."""
    cmd = ucmd.cmd
    if cmd.flags & ~flag:
        raise UapiError(errno.EINVAL, f"flags {cmd.flags:#x}")
    if not cmd.flags:
        return None
    if not ucmd.file.iommu_device.has_pasids:
        raise UapiError(errno.EOPNOTSUPP, "the device knows no PASIDs")
    end = ffi.sizeof(cmd[0])  # the PASID is the last member of both structures
    if ucmd.user_size < end:
        raise UapiError(errno.EINVAL, f"argsz {ucmd.user_size} has no pasid")
    return int.from_bytes(await ucmd.caller.read(ucmd.arg + end - 4, 4), "little")


async def device_attach_iommufd_pt(ucmd: Ucmd) -> None:
    """Attach the device, or move it, to an IOAS or HWPT (VFIO_DEVICE_ATTACH_IOMMUFD_PT).

    In:     pt_id  of the iommufd that the device is bound to      flags, pasid
    Out:    pt_id  the HWPT in use
    Errors: EINVAL  unknown flag; argsz without pasid
            EOPNOTSUPP  PASID, of a device without an IOMMU
            others: see Attachments.set_pt()
            EFAULT  pt_id cannot be written; the device is detached then
    Source: vfio_df_ioctl_attach_pt()
    """
    df, cmd = ucmd.file, ucmd.cmd
    pasid = await _pasid(ucmd, uapi.VFIO_DEVICE_ATTACH_PASID)
    cmd.pt_id = df.attachments.set_pt(cmd.pt_id, pasid)
    try:
        await ucmd.write_field("pt_id")
    except BaseException:
        df.attachments.detach(pasid)
        raise


async def device_detach_iommufd_pt(ucmd: Ucmd) -> None:
    """Detach the device; success if it is not attached (VFIO_DEVICE_DETACH_IOMMUFD_PT).

    Errors: EINVAL  unknown flag; argsz without pasid
    Source: vfio_df_ioctl_detach_pt()
    """
    pasid = await _pasid(ucmd, uapi.VFIO_DEVICE_DETACH_PASID)
    ucmd.file.attachments.detach(pasid)
