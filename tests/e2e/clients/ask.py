"""Asks the kernel, or iommufs, what two clients get that want the same: one line per answer.

Run on a Linux with the devices of the default machine, its answers are linux_7.3.txt; with
02:00.1 left to nobody and the argument `unbound`, unbound_7.3.txt. A line is
`section: what it was: result`, a result a number or an errno.
"""

import array
import errno
import fcntl
import mmap
import os
import socket
import struct
import sys
from pathlib import Path

EDU, NVME, NIC0, NIC1, BRIDGE_EDU, TESTDEV = 0, 1, 2, 3, 4, 5
ADDRESSES = {NIC0: "0000:02:00.0", NIC1: "0000:02:00.1", EDU: "0000:00:06.0"}
GROUPS = {EDU: 5, NVME: 9, NIC0: 10, NIC1: 10, BRIDGE_EDU: 11, TESTDEV: 11}

GET_STATUS, SET_CONTAINER, GET_DEVICE_FD = 0x3B67, 0x3B68, 0x3B6A
GET_INFO, RESET, HOT_RESET_INFO, HOT_RESET = 0x3B6B, 0x3B6F, 0x3B70, 0x3B71
BIND, ATTACH, DETACH, DESTROY, IOAS_ALLOC = 0x3B76, 0x3B77, 0x3B78, 0x3B80, 0x3B81
VFIO_IOAS, VFIO_IOAS_SET = 0x3B88, 1
CONFIG = 7 << 40
NOT_OWNED = 0xFFFFFFFF

section = ""


def say(what, result):
    print(f"{section}: {what}: {result}", flush=True)


class Worker:
    """What a client's process does; its files by name."""

    def __init__(self):
        self.files = {}

    def open(self, name, path):
        self.files[name] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        return 0

    def close(self, *names):
        for name in names:
            os.close(self.files.pop(name))
        return 0

    def ioctl(self, name, number, fmt, *values):
        """The structure afterwards; in values, a name of a file is its descriptor."""
        values = [self.files[v] if isinstance(v, str) else v for v in values]
        data = array.array("B", struct.pack(fmt, *values))
        fcntl.ioctl(self.files[name], number, data)
        return struct.unpack(fmt, data.tobytes())

    def bind(self, name, iommufd):
        self.ioctl(name, BIND, "<IIiI", 16, 0, iommufd, 0)
        return 0

    def ioas(self, iommufd):
        return self.ioctl(iommufd, IOAS_ALLOC, "<III", 12, 0, 0)[2]

    def container_ioas(self, iommufd):
        """The IOAS of the container: a new one."""
        self.ioctl(iommufd, VFIO_IOAS, "<IIHH", 12, self.ioas(iommufd), VFIO_IOAS_SET, 0)
        return 0

    def attach(self, name, pt_id):
        self.ioctl(name, ATTACH, "<III", 12, 0, pt_id)
        return 0

    def detach(self, name):
        self.ioctl(name, DETACH, "<II", 8, 0)
        return 0

    def info(self, name):
        return self.ioctl(name, GET_INFO, "<IIII", 16, 0, 0, 0)[1:]

    def read(self, name, offset=CONFIG):
        return os.pread(self.files[name], 4, offset).hex()

    def write(self, name, data, offset):
        return os.pwrite(self.files[name], data, offset)

    def map(self, name):
        mmap.mmap(self.files[name], 4096, prot=mmap.PROT_READ).close()
        return 0

    def reset(self, name):
        fcntl.ioctl(self.files[name], RESET, 0)
        return 0

    def hot_reset_info(self, name):
        """flags and ids; the room is for eight functions."""
        values = self.ioctl(name, HOT_RESET_INFO, "<III64s", 76, 0, 0, bytes(64))
        entries = struct.iter_unpack("<IHBB", values[3][: 8 * values[2]])
        names = {NOT_OWNED: "not owned", 0: "owned"}
        return values[1], [names.get(entry[0], "an id") for entry in entries]

    def hot_reset(self, name, *groups):
        self.ioctl(name, HOT_RESET, f"<III{len(groups)}i", 12 + 4 * len(groups), 0, len(groups),
                   *groups)  # fmt: skip
        return 0

    def set_container(self, name, container):
        self.ioctl(name, SET_CONTAINER, "<i", container)
        return 0

    def status(self, name):
        return self.ioctl(name, GET_STATUS, "<II", 8, 0)[1]

    def device_fd(self, name, group, device):
        address = array.array("B", ADDRESSES[device].encode() + b"\0")
        self.files[name] = fcntl.ioctl(self.files[group], GET_DEVICE_FD, address)
        return 0

    def destroy(self, name, object_id):
        self.ioctl(name, DESTROY, "<II", 8, object_id)
        return 0


class Client:
    """A process; what it is asked is answered by its Worker, an errno by name."""

    def __init__(self):
        self.end, other = socket.socketpair()
        self.pid = os.fork()
        if not self.pid:
            self.end.close()
            serve(other)
            os._exit(0)
        other.close()

    def __getattr__(self, call):
        def ask(*arguments):
            self.end.send(repr((call, arguments)).encode())
            return eval(self.end.recv(65536))

        return ask

    def cdev(self, device, name="device"):
        return self.open(name, f"/dev/vfio/devices/vfio{device}")

    def group(self, device, name="group"):
        return self.open(name, f"/dev/vfio/{GROUPS[device]}")

    def give(self, name, other):
        """Pass a file to another client, under the same name."""
        self.end.send(repr(("give", (name,))).encode())
        _, fds, _, _ = socket.recv_fds(self.end, 8, 1)
        other.end.send(repr(("take", (name,))).encode())
        other.end.recv(8)
        socket.send_fds(other.end, [b"x"], fds)
        other.end.recv(8)
        os.close(fds[0])

    def leave(self):
        self.end.send(b"leave")
        return os.waitpid(self.pid, 0)[1]


def serve(end):
    worker = Worker()
    while (request := end.recv(65536)) != b"leave":
        call, arguments = eval(request)
        if call == "give":
            socket.send_fds(end, [b"x"], [worker.files[arguments[0]]])
        elif call == "take":
            end.send(b"ready")
            _, fds, _, _ = socket.recv_fds(end, 8, 1)
            worker.files[arguments[0]] = fds[0]
            end.send(b"taken")
        else:
            try:
                result = getattr(worker, call)(*arguments)
            except OSError as error:
                result = errno.errorcode[error.errno]
            end.send(repr(result).encode())


def pair():
    """Two clients with an iommufd each."""
    clients = Client(), Client()
    for client in clients:
        client.open("iommu", "/dev/iommu")
    return clients


def ask_one_device():
    a, b = pair()
    say("both open it", (a.cdev(EDU), b.cdev(EDU)))
    say("nobody has bound it", (a.info("device"), b.read("device"), b.map("device")))
    say("a binds, b binds", (a.bind("device", "iommu"), b.bind("device", "iommu")))
    say("b again", b.bind("device", "iommu"))
    say("b uses it", (b.info("device"), b.read("device"), b.write("device", b"x", 0)))
    say("b maps, resets it", (b.map("device"), b.reset("device")))
    say("b attaches, detaches", (b.attach("device", 1), b.detach("device")))
    say("b opens the group", b.group(EDU))
    say("a uses it", (a.info("device"), a.read("device"), a.map("device")))
    say("a's second file", (a.cdev(EDU, "second"), a.bind("second", "iommu")))
    say("a closes the second", (a.close("second"), a.read("device")))
    say("a closes it, b binds", (a.close("device"), b.bind("device", "iommu")))
    say("b uses it", (b.info("device"), b.read("device")))
    say("a opens and binds", (a.cdev(EDU), a.bind("device", "iommu")))
    b.leave()
    say("b is gone, a binds", a.bind("device", "iommu"))
    a.leave()


def ask_one_iommufd():
    a, b = pair()
    a.give("iommu", b)
    a.cdev(EDU), b.cdev(EDU)
    say("the same device", (a.bind("device", "iommu"), b.bind("device", "iommu")))
    b.cdev(NVME, "other")
    say("another device", b.bind("other", "iommu"))
    ioas = a.ioas("iommu")
    say("both attach", (a.attach("device", ioas), b.attach("other", ioas)))
    say("b destroys it", b.destroy("iommu", ioas))
    a.give("device", b)
    say("b uses a's file", (b.info("device"), b.read("device")))
    a.leave()
    say("a is gone, b uses it", (b.info("device"), b.read("device")))
    b.leave()


def ask_one_file():
    """The descriptor itself is passed on: then there are two who have bound the device."""
    a, b = pair()
    a.cdev(EDU)
    a.give("device", b)
    say("a binds, b binds", (a.bind("device", "iommu"), b.bind("device", "iommu")))
    say("b uses it", (b.info("device"), b.read("device")))
    say("b attaches to its own", b.attach("device", b.ioas("iommu")))
    say("a closes it, b uses it", (a.close("device"), b.info("device")))
    a.leave(), b.leave()


def ask_one_group():
    a, b = pair()
    say("both open", (a.cdev(NIC0), b.cdev(NIC1)))
    say("a binds one, b the other", (a.bind("device", "iommu"), b.bind("device", "iommu")))
    say("b uses it", (b.info("device"), b.read("device")))
    say("b opens the group", b.group(NIC0))
    say("a closes its iommufd", (a.close("iommu"), b.bind("device", "iommu")))
    say("a closes the device", (a.close("device"), b.bind("device", "iommu")))
    a.open("iommu", "/dev/iommu")
    say("now a", (a.cdev(NIC0), a.bind("device", "iommu")))
    b.give("iommu", a)
    say("a with b's iommufd", a.bind("device", "iommu"))
    one, two = a.ioas("iommu"), a.ioas("iommu")
    say("a attaches", a.attach("device", one))
    say("b attaches elsewhere", b.attach("device", two))
    say("b attaches there, moves", (b.attach("device", one), b.attach("device", two)))
    say("what a's was", a.destroy("iommu", one))
    say("what it is", a.destroy("iommu", two))
    say("a detaches", (a.detach("device"), a.destroy("iommu", two)))
    say("b detaches", (b.detach("device"), a.destroy("iommu", two)))
    a.leave(), b.leave()


def ask_bridge_group():
    a, b = pair()
    a.cdev(BRIDGE_EDU), b.cdev(TESTDEV)
    say("a binds one, b the other", (a.bind("device", "iommu"), b.bind("device", "iommu")))
    say("a closes it", (a.close("device"), b.bind("device", "iommu")))
    a.leave(), b.leave()


def ask_group_and_cdev():
    a, b = pair()
    say("a opens the group, b too", (a.group(NIC0), b.group(NIC0)))
    say("b opens a cdev", b.cdev(NIC1))
    say("b binds it", b.bind("device", "iommu"))
    say("a sets its container", a.set_container("group", "iommu"))
    say("b binds", b.bind("device", "iommu"))
    a.container_ioas("iommu")
    say("a gets a device", a.device_fd("device", "group", NIC0))
    say("a closes the group", a.close("group"))
    say("b opens it", b.group(NIC0))
    say("its status", b.status("group"))
    say("b sets its container", b.set_container("group", "iommu"))
    b.container_ioas("iommu")
    say("b gets the same device", b.device_fd("other", "group", NIC0))
    say("b gets the other device", b.device_fd("other", "group", NIC1))
    say("b closes the group, binds", (b.close("group"), b.bind("device", "iommu")))
    say("a closes the device, b binds", (a.close("device"), b.bind("device", "iommu")))
    say("a opens the group", a.group(NIC0))
    say("b leaves", b.leave())
    say("a opens the group", a.group(NIC0))
    a.leave()


def ask_reset_scope():
    a, b = pair()
    a.cdev(NIC0), b.cdev(NIC1)
    a.bind("device", "iommu")
    say("a alone", (a.hot_reset_info("device"), a.hot_reset("device")))
    say("b, not bound", (b.hot_reset_info("device"), b.hot_reset("device")))
    say("b binds to its own", b.bind("device", "iommu"))
    say("a resets", a.hot_reset("device"))
    a.give("iommu", b)
    say("b binds to a's", b.bind("device", "iommu"))
    say("both", (a.hot_reset_info("device"), b.hot_reset_info("device")))
    say("both reset", (a.hot_reset("device"), b.hot_reset("device")))
    say("one's own, while the other is there", (a.reset("device"), b.reset("device")))
    a.open("null", "/dev/null")
    say("a resets with a file", a.hot_reset("device", "null"))
    a.close("device")
    say("a has closed, b", (b.hot_reset_info("device"), b.hot_reset("device")))
    a.leave(), b.leave()


def ask_reset_scope_group():
    a, b = pair()
    say("a opens", (a.group(NIC0), a.set_container("group", "iommu")))
    a.container_ioas("iommu")
    say("a gets both", [a.device_fd(f"device{n}", "group", n) for n in (NIC0, NIC1)])
    say("a resets with nothing", a.hot_reset(f"device{NIC0}"))
    say("with its group", a.hot_reset(f"device{NIC0}", "group"))
    say("with its group twice", a.hot_reset(f"device{NIC0}", "group", "group"))
    say("three times", a.hot_reset(f"device{NIC0}", "group", "group", "group"))
    b.group(EDU)
    b.give("group", a)
    say("with another's group", a.hot_reset(f"device{NIC0}", "group"))
    a.leave(), b.leave()


def ask_unbound():
    a, b = pair()
    say("cdevs", sorted(os.listdir("/dev/vfio/devices")))
    a.cdev(NIC0)
    say("a binds", a.bind("device", "iommu"))
    say("info", a.hot_reset_info("device"))
    say("reset", (a.hot_reset("device"), a.reset("device")))
    a.leave(), b.leave()


def main(only):
    global section
    parts = [name[4:] for name in globals() if name.startswith("ask_")]
    for name in only or [name for name in parts if name != "unbound"]:
        section = name
        globals()[f"ask_{name}"]()


if __name__ == "__main__":
    assert Path("/dev/vfio").is_dir()
    main(sys.argv[1:])
