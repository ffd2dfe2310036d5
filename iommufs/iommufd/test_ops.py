"""IOMMU_TEST_CMD, the kernel's own test interface: there with CONFIG_IOMMUFD_TEST only."""

import errno

from iommufs.errors import UapiError
from iommufs.ucmd import Ucmd


def test_cmd(ucmd: Ucmd) -> None:
    """Carry out a test operation (IOMMU_TEST_CMD); none is known yet.

    Errors: EOPNOTSUPP  unknown operation
    """
    raise UapiError(errno.EOPNOTSUPP, f"test operation {ucmd.cmd.op}")


test_cmd.__test__ = False  # for pytest
