"""GET_HW_INFO: what the IOMMU behind a device says about itself."""

import errno

from iommufs import jobs, uapi
from iommufs.errors import UapiError
from iommufs.iommufd.device import Device
from iommufs.ucmd import Ucmd

ZEROS = bytes(1 << 16)


async def get_hw_info(ucmd: Ucmd) -> None:
    """Describe the IOMMU of a device (IOMMU_GET_HW_INFO).

    In:     data_uptr, data_len  room for the driver's structure; what it leaves is zeroed
            in_data_type         which structure, with flag INPUT_TYPE only
    Out:    data_len             bytes of the structure, also if the room was less
    Errors: EOPNOTSUPP  unknown flag; reserved field; the IOMMU has no such structure
            ENOENT      no such device          EFAULT  data_uptr
    Source: iommufd_get_hw_info()
    """
    cmd = ucmd.cmd
    if cmd.flags & ~uapi.IOMMU_HW_INFO_FLAG_INPUT_TYPE:
        raise UapiError(errno.EOPNOTSUPP, f"flags {cmd.flags:#x}")
    if any(cmd.__reserved):
        raise UapiError(errno.EOPNOTSUPP, "reserved field")
    with ucmd.file.objects.use(cmd.dev_id, Device) as device:
        wanted = uapi.IOMMU_HW_INFO_TYPE_DEFAULT
        if cmd.flags & uapi.IOMMU_HW_INFO_FLAG_INPUT_TYPE:
            wanted = cmd.in_data_type
        data_type, data = device.iommu.hw_info(device.function, wanted)
        await ucmd.caller.write(cmd.data_uptr, data[: cmd.data_len])
        await _write_zeros(ucmd, len(data), cmd.data_len)
        cmd.data_len = len(data)
        cmd.out_data_type = data_type
        cmd.out_capabilities = device.iommu.hw_capabilities(device.function)
        pasids = device.iommu.max_pasids(device.function)
        cmd.out_max_pasid_log2 = pasids.bit_length() - 1 if pasids else 0
        await ucmd.respond()


async def _write_zeros(ucmd: Ucmd, start: int, end: int) -> None:
    while start < end:
        length = min(end - start, len(ZEROS))
        await ucmd.caller.write(ucmd.cmd.data_uptr + start, ZEROS[:length])
        start += length
        await jobs.let_others()  # up to 4 GiB: others get their turn
