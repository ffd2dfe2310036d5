"""The client process behind one request: its memory, its files, its identity.

A request names a thread, so a thread id is what a caller is known by. The thread waits in the
kernel until it is answered, so its id cannot be another's meanwhile; nothing here is kept longer
than the request, except an `Mm`, which holds on to the address space itself.
"""

import errno
import functools
import os
from typing import Any

from iommufs import jobs, logs
from iommufs._native import ffi, lib
from iommufs.errors import UapiError, check

log = logs.get(__name__)


@functools.cache
def _tell_of_launcher() -> None:
    log.warning(
        "a call that returns a file descriptor failed with EOPNOTSUPP: start the program with "
        "`iommufs run`"
    )


class Mm:
    """An address space of a client, kept through its exec and exit (see iofs_mm_open).

    secret  what exec has left in it, as somebody read it who may wait
    """

    def __init__(self, tgid: int, tid: int, secret: bytes) -> None:
        out = ffi.new("struct iofs_mm **")
        known = secret if len(secret) == lib.IOFS_SECRET else ffi.NULL
        result = lib.iofs_mm_open(tgid, tid, known, out)
        check(result, f"the memory of process {tgid}")
        self.handle = ffi.gc(out[0], lib.iofs_mm_put)
        self.secret_at = lib.iofs_mm_secret_at(self.handle)

    def close(self) -> None:
        """Let go of it; mappings that were made with it keep it."""
        ffi.release(self.handle)

    def has(self, tgid: int) -> bool:
        """Whether somebody runs in it, and a process that it was made for has not ended."""
        return bool(lib.iofs_mm_has(self.handle, tgid))

    def runs(self, tgid: int, secret: bytes) -> bool:
        """Whether that process runs in it, with that secret now."""
        known = secret if len(secret) == lib.IOFS_SECRET else ffi.NULL
        return bool(lib.iofs_mm_runs(self.handle, tgid, known))


def _read_status(thread: int | str) -> str:
    """The text of /proc/<thread>/status; ESRCH."""
    try:
        with open(f"/proc/{thread}/status", encoding="ascii", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        raise UapiError(errno.ESRCH, f"thread {thread} is gone") from None


def _field(status: str, key: str) -> str:
    return status.partition(f"\n{key}:\t")[2].partition("\n")[0]


class Caller:
    """One thread of a client, for the time of one request.

    uid, gid  its file-system ids, as the request says them
    """

    def __init__(self, tid: int, uid: int = 0, gid: int = 0) -> None:
        self.tid = tid
        self.uid = uid
        self.gid = gid
        self._status_text = ""

    async def read_some(self, address: int, length: int) -> bytes:
        """What can be read of [address, address + length) before the first unreadable page."""
        job = await jobs.finish(lib.iofs_job_client_read(self.tid, address, length))
        try:
            got = lib.iofs_job_result(job)
            return bytes(ffi.buffer(lib.iofs_job_data(job), got)) if got > 0 else b""
        finally:
            lib.iofs_job_free(job)

    async def read(self, address: int, length: int) -> bytes:
        """Read client memory, all of it; EFAULT."""
        data = await self.read_some(address, length) if length else b""
        if len(data) < length:
            raise UapiError(errno.EFAULT, f"client memory at {address + len(data):#x}")
        return data

    async def write(self, address: int, data: bytes) -> None:
        """Write client memory; EFAULT, the part before the bad page being written by then."""
        if not data:
            return
        job = await jobs.finish(lib.iofs_job_client_write(self.tid, address, data, len(data)))
        done = lib.iofs_job_free(job)
        if done < len(data):
            raise UapiError(errno.EFAULT, f"client memory at {address + max(done, 0):#x}")

    def _status(self, key: str) -> str:
        if not self._status_text:
            self._status_text = _read_status(self.tid)
        return _field(self._status_text, key)

    @property
    def tgid(self) -> int:
        """The process that the thread belongs to."""
        return int(self._status("Tgid"))

    @property
    def real_uid(self) -> int:
        """Whom what the thread uses is charged to, whatever rights it has taken on."""
        return int(self._status("Uid").split()[0])

    def capable(self, capability: int) -> bool:
        """Whether the thread has a capability (CAP_… above) in our own user namespace.

        One that our container withholds from everybody belongs to whoever may use all the others,
        and uses some: the root of a container is the root of the machine that we are.
        """
        effective, permitted = (int(self._status(key), 16) for key in ("CapEff", "CapPrm"))
        if not effective >> capability & 1:
            obtainable = int(_field(_read_status("self"), "CapBnd"), 16)
            if obtainable >> capability & 1 or permitted != obtainable or not effective:
                return False
        try:
            mine, theirs = (os.stat(f"/proc/{who}/ns/user") for who in ("self", self.tid))
        except (FileNotFoundError, ProcessLookupError):
            raise UapiError(errno.ESRCH, f"thread {self.tid} is gone") from None
        return (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino)

    def get_fd(self, fd: int) -> int:
        """A duplicate, in this process, of the client's open file; EBADF. The caller closes it."""
        out = lib.iofs_client_fd(self.tid, fd)
        return check(out, f"fd {fd} of the client")

    def check_fd_available(self) -> None:
        """Whether reserve_fd() can work now: EOPNOTSUPP through FUSE, else EMFILE."""
        _tell_of_launcher()
        raise UapiError(errno.EOPNOTSUPP, "only `iommufs run` can return a descriptor")

    async def reserve_fd(self, open_file: Any) -> Any:
        """A descriptor of an open file of ours, to be installed in the client (fdreturn.py).

        Takes over the file, which is released even if this fails. This caller came through FUSE,
        which cannot return descriptors: EOPNOTSUPP.
        """
        open_file.release()
        self.check_fd_available()

    def file_identity(self, fd: int) -> tuple[str, str]:
        """Device and inode of an open file, as /proc/…/maps writes them; EBADF."""
        try:
            with open(f"/proc/{self.tid}/fdinfo/{fd}", encoding="ascii") as file:
                info = dict(line.split(":\t", 1) for line in file if ":\t" in line)
            with open(f"/proc/{self.tid}/mountinfo", encoding="utf-8", errors="replace") as file:
                mounts = (line.split() for line in file)
                number = next(line[2] for line in mounts if line[0] == info["mnt_id"].strip())
        except (OSError, StopIteration, KeyError):
            raise UapiError(errno.EBADF, f"fd {fd} of the client") from None
        major, minor = (int(part) for part in number.split(":"))
        return f"{major:02x}:{minor:02x}", info["ino"].strip()

    async def secret(self, mm: Mm | None) -> bytes:
        """What exec has left in its memory, read where an address space has it."""
        address = mm.secret_at if mm else lib.iofs_secret_at(self.tid)
        return await self.read_some(address, lib.IOFS_SECRET) if address else b""

    def mm(self, secret: bytes) -> Mm:
        """A handle on the caller's address space as it is now; ESRCH, ENOMEM."""
        return Mm(self.tgid, self.tid, secret)
