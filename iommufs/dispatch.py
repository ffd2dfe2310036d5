import errno
from iommufs.errors import UapiError


async def ioctl(file, caller, cmd, arg, prefetched=b""):
    if cmd == 0x3B81:
        await caller.write(arg, b"\x0c\0\0\0\0\0\0\0\x07\0\0\0")
        return 0
    if cmd == 0x3B82:
        return len(prefetched)
    raise UapiError(errno.ENOTTY)
