"""OPTION: two switches, one of the context and one of an address space."""

import errno

from iommufs import uapi
from iommufs._native import lib
from iommufs.errors import UapiError, check
from iommufs.iommufd.ioas import Ioas
from iommufs.limits import CAP_SYS_RESOURCE
from iommufs.ucmd import Ucmd


async def option(ucmd: Ucmd) -> None:
    """Get or set an option (IOMMU_OPTION).

    Out:    val64       alone is written back, by SET too
    Errors: EOPNOTSUPP  reserved field, unknown option or op
            RLIMIT_MODE: EOPNOTSUPP  object_id not 0    EPERM  SET without CAP_SYS_RESOURCE
                         EBUSY  SET with any object     EINVAL a value other than 0, 1
            HUGE_PAGES:  ENOENT  no such IOAS           EINVAL a value other than 0, 1; SET 0 with
                         EADDRINUSE  SET 0 with areas          a domain and areas
                                     off page boundaries
    Source: iommufd_option(), iommufd_option_rlimit_mode(), iommufd_ioas_option()
    """
    if ucmd.cmd.__reserved:
        raise UapiError(errno.EOPNOTSUPP, "reserved field")
    if ucmd.cmd.option_id == uapi.IOMMU_OPTION_RLIMIT_MODE:
        _rlimit_mode(ucmd)
    elif ucmd.cmd.option_id == uapi.IOMMU_OPTION_HUGE_PAGES:
        _huge_pages(ucmd)
    else:
        raise UapiError(errno.EOPNOTSUPP, f"option {ucmd.cmd.option_id}")
    await ucmd.write_field("val64")


def _rlimit_mode(ucmd: Ucmd) -> None:
    cmd, ctx = ucmd.cmd, ucmd.file
    if cmd.object_id:
        raise UapiError(errno.EOPNOTSUPP, "the option is the context's")
    if cmd.op == uapi.IOMMU_OPTION_OP_GET:
        cmd.val64 = ctx.mm_mode
    elif cmd.op == uapi.IOMMU_OPTION_OP_SET:
        if not ucmd.caller.capable(CAP_SYS_RESOURCE):
            raise UapiError(errno.EPERM, "needs CAP_SYS_RESOURCE")
        if len(ctx.objects):
            raise UapiError(errno.EBUSY, f"{len(ctx.objects)} objects")
        if cmd.val64 > 1:
            raise UapiError(errno.EINVAL, f"mode {cmd.val64}")
        ctx.mm_mode = bool(cmd.val64)
    else:
        raise UapiError(errno.EOPNOTSUPP, f"op {cmd.op}")


def _huge_pages(ucmd: Ucmd) -> None:
    cmd = ucmd.cmd
    ioas = ucmd.file.objects.find(cmd.object_id, Ioas)
    if cmd.op == uapi.IOMMU_OPTION_OP_GET:
        cmd.val64 = lib.iofs_iopt_huge_pages(ioas.iopt)
    elif cmd.op == uapi.IOMMU_OPTION_OP_SET:
        if cmd.val64 > 1:
            raise UapiError(errno.EINVAL, f"value {cmd.val64}")
        check(lib.iofs_iopt_set_huge_pages(ioas.iopt, cmd.val64), "huge pages")
    else:
        raise UapiError(errno.EOPNOTSUPP, f"op {cmd.op}")
