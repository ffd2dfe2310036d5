"""What a client of the features that return descriptors sees; runs under `iommufs run`.

Prints a line for each answer. Arguments: the cdev of an edu that migrates, one more of the kind.
"""

import array
import errno
import fcntl
import mmap
import os
import struct
import sys

BIND, ATTACH, FEATURE, PRECOPY_INFO = 0x3B76, 0x3B77, 0x3B75, 0x3B79
IOAS_ALLOC, MAP_FILE = 0x3B81, 0x3B8F
GET, SET = 1 << 16, 1 << 17
STATE, DMA_BUF = 2, 11
STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY = 1, 2, 3, 4, 6
PAGE = 4096


def name(error):
    return errno.errorcode[error.errno]


def attempt(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return name(error)


def ioctl(fd, number, fmt, *values):
    """Returns the result and the structure."""
    data = array.array("B", struct.pack(fmt, *values))
    result = fcntl.ioctl(fd, number, data)
    return result, struct.unpack(fmt, data.tobytes())


def go(device, state):
    """The descriptor of the stream."""
    return ioctl(device, FEATURE, "<IIIi", 16, SET | STATE, state, 77)[1][3]


def dma_buf(device, length, flags):
    result = ioctl(device, FEATURE, "<IIIIIIQQ", 40, GET | DMA_BUF, 0, flags, 0, 1, 0, length)
    return result[0]


def kind(fd):
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    cloexec = bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
    return {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "rw"}[flags], cloexec


def migrate(source, target):
    os.pwrite(source, b"\1\2\3\4", 4)
    stream = go(source, PRE_COPY)
    print("stream", kind(stream), attempt(os.pread, stream, 1, 0), attempt(os.write, stream, b"x"))
    _, info = ioctl(stream, PRECOPY_INFO, "<IIQQ", 24, 0, 0, 0)
    data = b""
    while isinstance(part := attempt(os.read, stream, 1000), bytes):
        data += part
    print("early", part, len(data) == info[2], info[3])
    print("same stream", go(source, STOP_COPY))
    while part := os.read(stream, 1000):
        data += part
    into = go(target, RESUMING)
    print("stream", kind(into), attempt(os.pwrite, into, b"x", 0), attempt(os.read, into, 1))
    print("written", os.write(into, data) == len(data))
    print("running", go(target, RUNNING), os.pread(target, 4, 4).hex())
    print("ended", attempt(os.write, into, b"x"))
    os.close(into)
    print("stopped", go(source, STOP), attempt(os.read, stream, 1))
    limit_reached(source)
    print("running", go(source, RUNNING))


def limit_reached(source):
    """Without a free descriptor the device moves all the same, and there is no stream."""
    fds = []
    while isinstance(fd := attempt(os.open, "/dev/null", os.O_RDONLY), int):
        fds.append(fd)
    print("no more", attempt(go, source, STOP_COPY))
    for fd in fds:
        os.close(fd)
    print("state", ioctl(source, FEATURE, "<IIIi", 16, GET | STATE, 0, 0)[1][2:])


def export(iommufd, device):
    os.pwrite(device, b"\x06\0", (7 << 40) + 4)
    fd = dma_buf(device, 2 * PAGE, os.O_RDWR | os.O_CLOEXEC)
    print("dma-buf", kind(fd), kind(dma_buf(device, PAGE, os.O_RDONLY)))
    print("as a file", attempt(os.read, fd, 1), attempt(os.write, fd, b"x"))
    print("mmap", attempt(mmap.mmap, fd, PAGE))
    _, (_, _, ioas) = ioctl(iommufd, IOAS_ALLOC, "<III", 12, 0, 0)
    map_it = ("<IIIiQQQ", 40, 7, ioas, fd, 0, 2 * PAGE, 0x10000)
    print("map", attempt(ioctl, iommufd, MAP_FILE, *map_it)[0])
    os.pwrite(device, b"\0\0", (7 << 40) + 4)
    print("decoding off", attempt(ioctl, iommufd, MAP_FILE, *map_it[:-1], 0x20000))
    os.close(device)
    print("closed", attempt(ioctl, iommufd, MAP_FILE, *map_it[:-1], 0x20000))


def main(paths):
    iommufd = os.open("/dev/iommu", os.O_RDWR)
    devices = [os.open(path, os.O_RDWR) for path in paths]
    for device in devices:
        ioctl(device, BIND, "<IIiI", 16, 0, iommufd, 0)
    migrate(*devices)
    export(iommufd, devices[0])


if __name__ == "__main__":
    main(sys.argv[1:])
