"""IOMMU_TEST_CMD, the kernel's own test interface: there with CONFIG_IOMMUFD_TEST only."""

import errno
import inspect

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.iommufd import dmabuf, selftest_access, selftest_devices, selftest_pages
from iommufs.ucmd import Ucmd

_OPS = {
    uapi.IOMMU_TEST_OP_ADD_RESERVED: selftest_pages.add_reserved,
    uapi.IOMMU_TEST_OP_MOCK_DOMAIN: selftest_devices.mock_domain,
    uapi.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS: selftest_devices.mock_domain,
    uapi.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE: selftest_devices.mock_domain_replace,
    uapi.IOMMU_TEST_OP_MD_CHECK_MAP: selftest_pages.check_map,
    uapi.IOMMU_TEST_OP_MD_CHECK_REFS: selftest_pages.check_refs,
    uapi.IOMMU_TEST_OP_MD_CHECK_IOTLB: selftest_devices.check_iotlb,
    uapi.IOMMU_TEST_OP_DEV_CHECK_CACHE: selftest_devices.check_dev_cache,
    uapi.IOMMU_TEST_OP_CREATE_ACCESS: selftest_access.create_access,
    uapi.IOMMU_TEST_OP_ACCESS_REPLACE_IOAS: selftest_access.access_replace_ioas,
    uapi.IOMMU_TEST_OP_ACCESS_PAGES: selftest_access.access_pages,
    uapi.IOMMU_TEST_OP_ACCESS_RW: selftest_access.access_rw,
    uapi.IOMMU_TEST_OP_DESTROY_ACCESS_PAGES: selftest_access.destroy_access_pages,
    uapi.IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT: selftest_pages.set_temp_memory_limit,
    uapi.IOMMU_TEST_OP_DIRTY: selftest_pages.dirty,
    uapi.IOMMU_TEST_OP_TRIGGER_IOPF: selftest_devices.trigger_iopf,
    uapi.IOMMU_TEST_OP_TRIGGER_VEVENT: selftest_devices.trigger_vevent,
    uapi.IOMMU_TEST_OP_PASID_ATTACH: selftest_devices.pasid_attach,
    uapi.IOMMU_TEST_OP_PASID_REPLACE: selftest_devices.pasid_replace,
    uapi.IOMMU_TEST_OP_PASID_DETACH: selftest_devices.pasid_detach,
    uapi.IOMMU_TEST_OP_PASID_CHECK_HWPT: selftest_devices.pasid_check_hwpt,
    uapi.IOMMU_TEST_OP_DMABUF_GET: dmabuf.dmabuf_get,
    uapi.IOMMU_TEST_OP_DMABUF_REVOKE: dmabuf.dmabuf_revoke,
}


async def test_cmd(ucmd: Ucmd) -> int | None:
    """Carry out a test operation (IOMMU_TEST_CMD), each of which is documented where it is.

    Errors: EOPNOTSUPP  unknown operation
    Source: iommufd_test()
    """
    operation = _OPS.get(ucmd.cmd.op)
    if operation is None:
        raise UapiError(errno.EOPNOTSUPP, f"test operation {ucmd.cmd.op}")
    result = operation(ucmd)
    return await result if inspect.isawaitable(result) else result


test_cmd.__test__ = False  # for pytest
