"""A run with test operations: what needs a descriptor, an mmap() or a read() of no bytes.

The rest of the mock IOMMU is tested in tests/contract; the kernel's own tests by make conformance.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "examples" / "test-ops.toml"

CLIENT = """
import ctypes, errno, os
from iommufs import uapi
from iommufs._native import ffi

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
SHARED, READ, WRITE, EXEC = 1, 1, 2, 4

fd = os.open("/dev/iommu", os.O_RDWR)

def error():
    return errno.errorcode[ctypes.get_errno()]

def call(number, struct, **fields):
    cmd = uapi.new(struct, **{"size": uapi.sizeof(struct), **fields})
    if libc.ioctl(fd, number, int(ffi.cast("uintptr_t", cmd))):
        return error()
    return cmd

def mmap(length, offset, prot=READ | WRITE, flags=SHARED):
    address = libc.mmap(None, length, prot, flags, fd, offset)
    return error() if address == 2**64 - 1 else address

def read_nothing(fd):
    result = libc.read(fd, None, 0)
    return error() if result < 0 else result

def destroy(object_id):
    result = call(uapi.IOMMU_DESTROY, "iommu_destroy", id=object_id)
    return result if isinstance(result, str) else 0

ioas = call(uapi.IOMMU_IOAS_ALLOC, "iommu_ioas_alloc").out_ioas_id
op = uapi.IOMMU_TEST_OP_MOCK_DOMAIN
device = call(uapi.IOMMU_TEST_CMD, "iommu_test_cmd", op=op, id=ioas).mock_domain.out_idev_id
parent = call(
    uapi.IOMMU_HWPT_ALLOC, "iommu_hwpt_alloc", dev_id=device, pt_id=ioas,
    flags=uapi.IOMMU_HWPT_ALLOC_NEST_PARENT,
).out_hwpt_id
data = uapi.new("iommu_viommu_selftest", in_data=0xBEEF)
viommu = call(
    uapi.IOMMU_VIOMMU_ALLOC, "iommu_viommu_alloc", type=uapi.IOMMU_VIOMMU_TYPE_SELFTEST,
    dev_id=device, hwpt_id=parent,
    data_uptr=int(ffi.cast("uintptr_t", data)), data_len=ffi.sizeof(data[0]),
).out_viommu_id
offset, length = data.out_mmap_offset, data.out_mmap_length
"""


@pytest.fixture
def client(runs):
    def run(program):
        result = subprocess.run(
            [sys.executable, "-m", "iommufs.cli", "run", "--config", CONFIG, "--",
             sys.executable, "-c", CLIENT + program],
            env={**runs.environment, "PYTHONPATH": str(ROOT)}, cwd=os.sep,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert result.stderr == ""
        return result.stdout.splitlines()

    return run


def test_memory_is_mapped_as_a_whole_or_not_at_all(client):
    assert client("""
print(mmap(length, 0), mmap(length, offset + 4096), mmap(4096, offset), mmap(2 * length, offset))
print(mmap(length, offset, READ | EXEC))
address = mmap(length - 1, offset)
print(ctypes.c_uint32.from_address(address).value == 0xBEEF, mmap(length, offset) != address)
""") == ["ENXIO ENXIO ENXIO ENXIO", "EPERM", "True True"]


def test_a_mapping_holds_its_object(client):
    assert client("""
address = mmap(length, offset)
print(destroy(viommu))
libc.munmap(address, 4096)
print(destroy(viommu))
libc.munmap(address + 4096, length - 4096)
print(destroy(viommu), mmap(length, offset))
""") == ["EBUSY", "EBUSY", "0 ENXIO"]


def test_reads_of_no_bytes(client):
    assert client("""
events = call(
    uapi.IOMMU_VEVENTQ_ALLOC, "iommu_veventq_alloc", viommu_id=viommu, veventq_depth=1,
    type=uapi.IOMMU_VEVENTQ_TYPE_SELFTEST,
).out_veventq_fd
faults = call(uapi.IOMMU_FAULT_QUEUE_ALLOC, "iommu_fault_alloc").out_fault_fd
null = os.open("/dev/null", os.O_RDONLY)
print(read_nothing(events), read_nothing(fd), read_nothing(faults), read_nothing(null))
print(read_nothing(99))
""") == ["EINVAL EINVAL 0 0", "EBADF"]


def test_other_files_are_mapped_as_ever(client):
    assert client("""
other = os.memfd_create("other")
os.ftruncate(other, 4096)
fd, iommu = other, fd
print(isinstance(mmap(4096, 0), int), mmap(4096, 0, flags=0), mmap(0, 0))
fd = os.open("/dev/null", os.O_RDWR)
print(mmap(4096, 0))
""") == ["True EINVAL EINVAL", "ENODEV"]
