"""Calls that only `iommufs run` can answer: ioctls that return a descriptor, and some others.

A FUSE server cannot put a descriptor into its caller; the listener of a seccomp filter can. The
filter of a run (seccomp.py) makes the callers of certain ioctls wait for us: on files that are not
ours the kernel carries on; on ours the ordinary dispatcher runs, with a caller for which
`Ucmd.install_fd` and its kin work.

Linux reserves a number, writes the structure, and installs the file last, so that an EFAULT leaves
nothing behind. A number cannot be reserved from outside; the lowest free one is foretold instead,
and should another thread of the client be quicker, the structure is written a second time.

FUSE asks nobody about an mmap() or an lseek(), and does not tell of a read() of no bytes, which
some files refuse; nor can a file of its be a character device. Of these, too, the filter gives
notice (unasked.py, looks.py). Notices of other files end in native/notifier.c.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import trio

from iommufs import logs, looks, uapi, unasked
from iommufs._native import ffi, lib
from iommufs.caller import Caller
from iommufs.errors import UapiError, check
from iommufs.files import OpenFiles
from iommufs.fuse.ioctl import result_of
from iommufs.mapped import MappedFiles
from iommufs.standin import Listener, mounted_device

if TYPE_CHECKING:
    from iommufs.fuse.operations import Operations

log = logs.get(__name__)

_FEATURES = {
    uapi.VFIO_DEVICE_FEATURE_SET | uapi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
    uapi.VFIO_DEVICE_FEATURE_GET | uapi.VFIO_DEVICE_FEATURE_DMA_BUF,
}
_TEST_OPS = {uapi.IOMMU_TEST_OP_CREATE_ACCESS, uapi.IOMMU_TEST_OP_DMABUF_GET}

# How long, in seconds, an open waits for the calls of the dead: a model may be slow.
_PATIENCE = 5


async def may_return_fd(caller: Caller, cmd: int, arg: int) -> bool:
    """Whether this call of one of seccomp.REQUESTS is of the kind that returns a descriptor."""
    if cmd not in (uapi.VFIO_DEVICE_FEATURE, uapi.IOMMU_TEST_CMD):
        return True
    head = await caller.read_some(arg, 8)
    word = int.from_bytes(head[4:8], "little")
    if cmd == uapi.IOMMU_TEST_CMD:
        return word in _TEST_OPS
    return word in _FEATURES


class FdReturner:
    """The listeners' end: answers the notices of a run, and of those that have joined it.

    others  the processes, besides our own children, whose descendants are in the run
    """

    def __init__(self, files: OpenFiles, operations: Operations, mount: str) -> None:
        self._files = files
        self._operations = operations
        operations.shows_devices = True
        self._mount = mount
        self._tokens = itertools.count()
        self._mapped: MappedFiles | None = None
        self._calls: dict[NotifiedCaller, trio.Event] = {}  # those that hold a file; when over
        self.others: set[int] = set()
        files.calls_over = self._dead_calls_over

    async def run(self, listener: Listener) -> None:
        """Answer until cancelled; owns the listener."""
        try:
            out = ffi.new("struct iofs_notifier **")
            words = ffi.from_buffer("uint64_t[]", listener.ledger.words)
            check(lib.iofs_notifier_start(listener.fd, words, out), "the thread for notices")
            try:
                await self._answer_all(listener, out[0])
            finally:
                lib.iofs_notifier_stop(out[0])
        finally:
            listener.close()

    async def keep_mapped(self) -> None:
        """Keep devices open while they are mapped; until cancelled, once we are mounted."""
        device = mounted_device(self._mount)
        self._mapped = MappedFiles(self._files, device, self.others)
        await self._mapped.run()

    async def _answer_all(self, listener: Listener, notifier: Any) -> None:
        ready = lib.iofs_notifier_fd(notifier)
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(ready)
                notice = ffi.new("struct iofs_notice *")
                while lib.iofs_notifier_next(notifier, notice):
                    nursery.start_soon(self._answer, notifier, listener.fd, notice)
                    notice = ffi.new("struct iofs_notice *")

    async def _answer(self, notifier: Any, listener: int, notice: Any) -> None:
        try:
            result = await self._result_of(NotifiedCaller(self, listener, notice), notice)
        except Exception:  # nobody else's call must suffer from it
            log.exception("a notice cannot be answered", call=notice.call, tid=notice.tid)
            result = -errno.EIO
        if result is None:
            lib.iofs_notice_continue(listener, notice.id)
        else:
            lib.iofs_notice_answer(listener, notice.id, result)
        lib.iofs_notifier_forget(notifier, notice.id)

    async def _result_of(self, caller: NotifiedCaller, notice: Any) -> int | None:
        """What the call comes to; None: the kernel may carry on."""
        if notice.call in looks.CALLS:
            return await looks.result_of(self._operations.device_of(notice.ino), caller, notice)
        return await self._result_of_open_file(caller, notice)

    async def _result_of_open_file(self, caller: NotifiedCaller, notice: Any) -> int | None:
        file = self._file_of(caller, notice.fd)
        if file is None:
            return None
        with self._holding(file, caller):
            if notice.call == lib.IOFS_NOTICE_IOCTL:
                return await self._result_of_ioctl(file, caller, notice)
            node = self._operations.device_of(notice.ino)
            result = await unasked.result_of(file, caller, notice, node)
            is_mmap = result is None and notice.call == lib.IOFS_NOTICE_MMAP
            if self._mapped and is_mmap and getattr(file, "stays_while_mapped", False):
                self._mapped.keep(file, notice.ino)
            return result

    @contextlib.contextmanager
    def _holding(self, file: Any, caller: NotifiedCaller) -> Iterator[None]:
        """Another thread of the client may close it, and its death does."""
        over = self._calls[caller] = trio.Event()
        try:
            with self._files.hold(file):
                yield
        finally:
            del self._calls[caller]
            over.set()

    async def _dead_calls_over(self) -> None:
        """Wait for the calls of callers that were killed, which hold what is closed by now.

        The kernel does not wait for us to answer a notice, as it does for a FUSE request.
        """
        with trio.move_on_after(_PATIENCE):
            for caller, over in list(self._calls.items()):
                if not caller.is_valid:
                    await over.wait()

    async def _result_of_ioctl(self, file: Any, caller: Caller, notice: Any) -> int | None:
        cmd, arg = notice.args[1] & 0xFFFFFFFF, notice.args[2]
        if not await may_return_fd(caller, cmd, arg):
            return None
        await _releases_done()
        return await result_of(self._files, file, caller, cmd, arg, compat=bool(notice.compat))

    def _file_of(self, caller: NotifiedCaller, fd: int) -> Any | None:
        try:
            file = self._files.resolve(caller, fd)
        except UapiError:
            return None  # the kernel finds the same
        return file if caller.is_valid else None

    async def open(self, open_file: Any) -> int:
        """A descriptor of ours for an open file; its close is the release. Takes over the file."""
        token = str(next(self._tokens))
        path = os.path.join(self._mount, self._operations.publish(token, open_file))
        fd = -errno.EINTR
        try:
            # Cancelled, the thread is left to itself: nobody serves its open() any longer, which
            # ends with the mount.
            fd = await trio.to_thread.run_sync(
                lib.iofs_transport_open,
                os.fsencode(path),
                getattr(open_file, "access_mode", os.O_RDWR),
                abandon_on_cancel=True,
            )
        finally:
            if fd < 0 and self._operations.withdraw(token, open_file):
                open_file.release()
        return check(fd, "a descriptor of our own")


async def _releases_done() -> None:
    """Wait until what was closed before this call is released: ioctls through FUSE do the same."""
    arrived, answered = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    lib.iofs_transport_releases(arrived, answered)
    target = arrived[0]
    while answered[0] < target:
        await trio.lowlevel.checkpoint()
        lib.iofs_transport_releases(arrived, answered)


class NotifiedCaller(Caller):
    """The thread behind a notice: one that can be given descriptors."""

    def __init__(self, returner: FdReturner, listener: int, notice: Any) -> None:
        super().__init__(notice.tid)
        self._returner = returner
        self._listener = listener
        self._id = notice.id
        with contextlib.suppress(UapiError, OSError):  # gone: its notice is void too
            self.uid, self.gid = (int(self._status(key).split()[3]) for key in ("Uid", "Gid"))

    @property
    def is_valid(self) -> bool:
        """Whether it still waits for this notice's answer."""
        return bool(lib.iofs_notice_is_valid(self._listener, self._id))

    def check_fd_available(self) -> None:
        self._lowest_free_fd()

    async def reserve_fd(self, open_file: Any) -> ReservedFd:
        try:
            number = self._lowest_free_fd()
        except BaseException:
            open_file.release()
            raise
        flags = 0 if getattr(open_file, "stays_on_exec", False) else os.O_CLOEXEC
        return ReservedFd(self, number, await self._returner.open(open_file), flags)

    def _lowest_free_fd(self) -> int:
        try:
            taken = {int(name) for name in os.listdir(f"/proc/{self.tid}/fd")}
            limit = self._fd_limit()
        except OSError as error:  # gone, or not ours to look into
            raise UapiError(error.errno or errno.ESRCH, f"descriptors of {self.tid}") from None
        number = next(fd for fd in itertools.count() if fd not in taken)
        if number >= limit:
            raise UapiError(errno.EMFILE, f"all {limit} descriptors are in use")
        return number

    def _fd_limit(self) -> int:
        """Its RLIMIT_NOFILE, from where another user's can be read without CAP_SYS_RESOURCE."""
        with open(f"/proc/{self.tid}/limits", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("Max open files"))
        return int(line.split()[3])

    def add_fd(self, fd: int, flags: int) -> int:
        """Install a duplicate of a descriptor of ours; EMFILE, ENOENT: the caller is gone."""
        return check(lib.iofs_notice_add_fd(self._listener, self._id, fd, flags), "a descriptor")


class ReservedFd:
    """A descriptor that is about to become the caller's; closes what was not installed.

    number  which it will be, unless another thread of the client takes that one first
    flags   O_CLOEXEC or 0
    """

    def __init__(self, caller: NotifiedCaller, number: int, fd: int, flags: int) -> None:
        self.number = number
        self._caller = caller
        self._fd = fd
        self._flags = flags

    def __enter__(self) -> ReservedFd:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)

    def install(self) -> int:
        """Give it to the caller; the number that it has become. EMFILE, ENOENT."""
        self.number = self._caller.add_fd(self._fd, self._flags)
        return self.number
