"""One ioctl in flight: where its structure lies, what was read of it, how it is answered.

The dispatcher makes it, has read the structure into `cmd` by the rules of its table, and passes it
to the handler. The client's memory may change at any time; `cmd` is our copy and is read once.
"""

from typing import Any

from iommufs import uapi
from iommufs._native import ffi
from iommufs.caller import Caller


class Ucmd:
    """What a handler gets.

    file       the open file of ours that the ioctl came on (iommufd: its Ctx)
    cmd        the structure, a cffi pointer; output fields are set in it
    arg        where the client has it; also the plain argument of ioctls without a structure
    user_size  how many bytes the client says it has
    """

    def __init__(
        self, caller: Caller, file: Any, arg: int, cmd: Any = None, user_size: int = 0
    ) -> None:
        self.caller = caller
        self.file = file
        self.arg = arg
        self.cmd = cmd
        self.user_size = user_size

    async def respond(self) -> None:
        """Write the structure back, as far as the client's goes; EFAULT.

        A handler that made something does this last, and unmakes it if this raises.
        """
        known = ffi.buffer(self.cmd)
        await self.caller.write(self.arg, known[: self.user_size])

    async def respond_with_fd(self, open_file: Any, field: str) -> None:
        """Give the client a descriptor of an open file of ours, its number in a field; respond.

        Takes over the file: it is released when the client closes it, or now if this raises, which
        is after EOPNOTSUPP without the launcher, EMFILE, EFAULT. The client has nothing new then;
        what else the handler made it unmakes.
        """
        with await self.caller.reserve_fd(open_file) as fd:
            setattr(self.cmd, field, fd.number)
            await self.respond()
            if fd.install() != getattr(self.cmd, field):  # another thread had opened a file
                setattr(self.cmd, field, fd.number)
                await self.write_field(field)

    async def install_fd(self, open_file: Any) -> int:
        """Give the client a descriptor of an open file of ours: its number, the ioctl's result.

        The last step of a handler. It takes over the file as respond_with_fd() does; EOPNOTSUPP
        without the launcher, EMFILE.
        """
        with await self.caller.reserve_fd(open_file) as fd:
            return fd.install()

    async def write_field(self, name: str) -> None:
        """Write one field of the structure back; EFAULT."""
        start, end = uapi.field_range(ffi.typeof(self.cmd).item, name)
        await self.caller.write(self.arg + start, ffi.buffer(self.cmd)[start:end])
