"""A bound device whose page table has a fault queue, and what a client does about it."""

import fcntl
import os
import struct

SUCCESS, INVALID = 0, 1
READ, WRITE = 1, 2


def call(fd, number, layout, *fields):
    data = bytearray(struct.pack(layout, struct.calcsize(layout), *fields))
    fcntl.ioctl(fd, number, data)
    return struct.unpack(layout, data)


class Device:
    """The first one, attached to a page table that asks through `queue`."""

    def __init__(self):
        self.iommu = os.open("/dev/iommu", os.O_RDWR)
        self.file = os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
        self.dev_id = call(self.file, 0x3B76, "=IIiI", 0, self.iommu, 0)[3]
        self.ioas = call(self.iommu, 0x3B81, "=III", 0, 0)[2]
        fault_id, self.queue = call(self.iommu, 0x3B8E, "=IIII", 0, 0, 0)[2:]
        fields = (4, self.dev_id, self.ioas, 0, 0, 0, 0, 0, fault_id, 0)  # FAULT_ID_VALID
        hwpt = call(self.iommu, 0x3B89, "=IIIIIIIIQII", *fields)[4]
        call(self.file, 0x3B77, "=III", 0, hwpt)
        os.pwrite(self.file, b"\x06\x00", (7 << 40) + 4)  # memory decoding, bus mastering

    def asked(self):
        """(dev_id, perm, addr, cookie) of the next request."""
        while len(record := os.read(self.queue, 40)) == 0:
            pass
        _, dev_id, _, _, perm, _, addr, _, cookie = struct.unpack("=IIIIIIQII", record)
        return dev_id, perm, addr, cookie

    def respond(self, cookie, code):
        assert os.write(self.queue, struct.pack("=II", cookie, code)) == 8

    def map(self, address, iova):
        call(self.iommu, 0x3B85, "=IIIIQQQ", 7, self.ioas, 0, address, 4096, iova)

    def detach(self):
        call(self.file, 0x3B78, "=II", 0)
