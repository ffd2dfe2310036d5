"""`iommufs run` around a small tree and a dispatcher of our own, for tests of the launcher.

    python small_run.py CMD…

/dev/iommu answers the ioctls that return descriptors by giving out `Made` files; an ordinary ioctl
(COUNT) says how many of those are open. VEVENTQ_ALLOC ends with its caller, reading /dev/vfio/stuck
never. Other ioctls fail with EPROTO if they came by the filter, else ENOTTY. /dev/vfio/single is
open once at a time.
"""

import functools
import os
import signal
import sys

from iommufs import launcher, uapi

COUNT = uapi.IOMMU_OPTION  # any number that the filter does not know


class Made:
    """What the returned descriptors are open files of."""

    table = "test"
    alive = 0

    def __init__(self):
        Made.alive += 1

    async def read(self, offset, size):
        return b"made"

    def poll(self):
        return 1

    def release(self):
        Made.alive -= 1


class Parent:
    """An open /dev/iommu: a stream of four bytes."""

    table = "test"

    def __init__(self):
        self.left = b"ours"

    async def read(self, offset, size):
        data, self.left = self.left[:size], self.left[size:]
        return data

    def poll(self):
        return 1

    def release(self):
        pass


class Single(Parent):
    is_open = False

    def __init__(self, flags):
        import errno

        from iommufs.errors import UapiError

        super().__init__()
        if Single.is_open:
            raise UapiError(errno.EBUSY)
        Single.is_open = True

    def release(self):
        Single.is_open = False


class Stuck(Parent):
    async def read(self, offset, size):
        import trio

        await trio.sleep_forever()


async def ioctl(file, caller, cmd, arg, prefetched=b""):
    """Stands for dispatch.ioctl."""
    import errno

    import trio

    from iommufs._native import ffi
    from iommufs.errors import UapiError
    from iommufs.fdreturn import NotifiedCaller
    from iommufs.ucmd import Ucmd

    ucmd = Ucmd(caller, file, arg)
    if cmd == COUNT:
        return Made.alive
    if cmd == uapi.IOMMU_VEVENTQ_ALLOC:
        while caller.is_valid:
            await trio.sleep(0.01)
        raise UapiError(errno.EINTR)
    if cmd == uapi.VFIO_GROUP_GET_DEVICE_FD:
        return await ucmd.install_fd(Made())
    if cmd == uapi.IOMMU_FAULT_QUEUE_ALLOC:
        ucmd.cmd = ffi.new("struct iommu_fault_alloc *", {"size": 16, "out_fault_id": 77})
        ucmd.user_size = ffi.sizeof(ucmd.cmd[0])
        await ucmd.respond_with_fd(Made(), "out_fault_fd")
        return 0
    raise UapiError(errno.EPROTO if isinstance(caller, NotifiedCaller) else errno.ENOTTY)


async def serve(tree, ready, take_listener):
    from iommufs import dispatch, server
    from iommufs.fdreturn import FdReturner
    from iommufs.files import OpenFiles
    from iommufs.fuse.nodes import DeviceNode, Dir, TextFile, place

    dispatch.ioctl = ioctl
    root = Dir()
    place(root, "dev/iommu", DeviceNode(0o666, (10, 258), lambda flags: Parent()))
    place(root, "dev/vfio/single", DeviceNode(0o666, (10, 197), Single))
    place(root, "dev/vfio/stuck", DeviceNode(0o666, (10, 196), lambda flags: Stuck()))
    place(root, "sys/bus/pci/drivers_autoprobe", TextFile(lambda: b"1\n"))
    place(root, "sys/devices/pci0000:00/0000:00:06.0/vendor", TextFile(lambda: b"0x1234\n"))
    place(root, "sys/class/vfio-dev/none", TextFile(lambda: b"\n"))
    place(root, "sys/module/vfio/version", TextFile(lambda: b"0.3\n"))
    files = OpenFiles()
    returners = []

    async def return_fds():
        listener = await take_listener()
        if listener is not None:
            await returners[0].run(listener)

    def on_operations(operations):
        returners.append(FdReturner(files, operations, tree))

    await server.serve(
        root, files, tree, ready=ready, tasks=[return_fds], on_operations=on_operations
    )


async def fail(tree, ready, take_listener):
    raise OSError("the tree cannot be made")


async def die(tree, ready, take_listener):
    os.kill(os.getpid(), signal.SIGKILL)


def run_server(serve, front, link, client):
    from iommufs import logs
    from iommufs.run_server import RunServer

    logs.configure()
    return RunServer(front, link, client, serve).run()


if __name__ == "__main__":
    command = sys.argv[1:]
    chosen = serve
    if command[0] in ("--fail", "--die"):
        chosen, command = {"--fail": fail, "--die": die}[command[0]], command[1:]
    try:
        sys.exit(launcher.launch(command, functools.partial(run_server, chosen)))
    except launcher.LaunchError as error:
        sys.exit(f"iommufs: {error}")
