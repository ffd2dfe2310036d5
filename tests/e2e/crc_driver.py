"""Drives the example model of examples/models/crc on vfio0; prints the sum, or the status."""

import ctypes
import fcntl
import mmap
import os
import select
import struct
import sys

CONFIG = 7 << 40
IOVA = 0x100000
length, first = int(sys.argv[1]), IOVA + int(sys.argv[2])

device = os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
iommufd = os.open("/dev/iommu", os.O_RDWR)
fcntl.ioctl(device, 0x3B76, bytearray(struct.pack("IIiI", 16, 0, iommufd, 0)))
ioas = bytearray(struct.pack("III", 12, 0, 0))
fcntl.ioctl(iommufd, 0x3B81, ioas)
(ioas_id,) = struct.unpack_from("I", ioas, 8)
fcntl.ioctl(device, 0x3B77, bytearray(struct.pack("III", 12, 0, ioas_id)))

memory = mmap.mmap(-1, 16384)
memory[:] = bytes(i * 7 & 255 for i in range(16384))
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fields = (40, 7, ioas_id, 0, address, 16384, IOVA)
fcntl.ioctl(iommufd, 0x3B85, bytearray(struct.pack("IIIIQQQ", *fields)))

eventfd = os.eventfd(0)
fcntl.ioctl(device, 0x3B6E, bytearray(struct.pack("IIIIIi", 24, 36, 1, 0, 1, eventfd)))
os.pwrite(device, b"\x06\0", CONFIG + 4)
os.pwrite(device, struct.pack("Q", first), 0x00)
os.pwrite(device, struct.pack("I", length), 0x08)
os.pwrite(device, struct.pack("I", 1), 0x0C)
if not select.select([eventfd], [], [], 30)[0]:
    sys.exit("no interrupt")
status, total = struct.unpack("II", os.pread(device, 4, 0x0C) + os.pread(device, 4, 0x10))
print(hex(total) if status == 0 else f"status {status}")
