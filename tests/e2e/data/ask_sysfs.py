"""What a program meets in /sys: run by test_sysfs.py here, and once in the reference guest."""

import ctypes
import errno
import fcntl
import os
import struct

EDU = "/sys/bus/pci/devices/0000:00:06.0"
NVME = "/sys/bus/pci/devices/0000:01:00.0"
NIC = "/sys/bus/pci/devices/0000:02:00.0"


def ask(what, function):
    try:
        answer = function()
    except OSError as error:
        answer = errno.errorcode[error.errno]
    print(f"{what}: {answer}")


def read(path, offset=0, length=4096):
    def answer():
        fd = os.open(path, os.O_RDONLY)
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)

    ask(f"read {path} {offset}+{length}", answer)


def can_open(path, flags):
    def answer():
        os.close(os.open(path, flags))
        return "ok"

    names = {os.O_RDONLY: "reading", os.O_WRONLY: "writing", os.O_RDWR: "both"}
    ask(f"open {path} for {names[flags]}", answer)


def follow(path):
    ask(f"real {path}", lambda: os.path.realpath(path))


def info(path):
    def answer():
        stat = os.stat(path)
        return f"{stat.st_mode:o} {stat.st_size if os.path.isfile(path) else ''}"

    ask(f"stat {path}", answer)


for name in ("vendor", "device", "class", "uevent", "resource", "modalias", "power/control"):
    read(f"{EDU}/{name}")
read(f"{EDU}/vendor", 2, 2)
read(f"{EDU}/vendor", 100, 2)
read(f"{EDU}/config", 0, 4)
read(f"{EDU}/config", 250, 16)
read(f"{EDU}/config", 256, 16)
read(f"{NVME}/config", 4094, 16)
read(f"{EDU}/resource0", 0, 4)
read(f"{NIC}/rom", 0, 4)
read(f"{EDU}/power/autosuspend_delay_ms")
read("/sys/kernel/iommu_groups/11/reserved_regions")
for path in (f"{EDU}/vendor", f"{EDU}/remove", "/sys/bus/pci/rescan", f"{EDU}/driver_override"):
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        can_open(path, flags)
for path in (f"{EDU}/driver", f"{EDU}/iommu_group", f"{EDU}/subsystem", f"{NIC}/vfio-dev/vfio2"):
    follow(path)
follow("/sys/class/vfio-dev/vfio4/device")
follow("/sys/dev/char/251:5")
for path in (EDU, f"{EDU}/config", f"{NVME}/config", f"{EDU}/resource0", f"{EDU}/irq"):
    info(path)
ask("list vfio-dev", lambda: os.listdir(f"{EDU}/vfio-dev"))
ask("list members", lambda: sorted(os.listdir("/sys/kernel/iommu_groups/11/devices")))
ask("list devices", lambda: len(os.listdir("/sys/bus/pci/devices")))
info(f"{EDU}/nothing")
info(f"{EDU}/vendor/nothing")
ask("make a directory", lambda: os.mkdir(f"{EDU}/new"))
ask("make a file", lambda: os.open(f"{EDU}/new", os.O_CREAT | os.O_WRONLY))
ask("remove a file", lambda: os.unlink(f"{EDU}/vendor"))
ask("rename a file", lambda: os.rename(f"{EDU}/vendor", f"{EDU}/new"))


def entries(path):
    """(inode, type, name) of each, as getdents64() tells them."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    buffer, found = ctypes.create_string_buffer(1 << 16), []
    while (length := ctypes.CDLL(None).syscall(217, fd, buffer, len(buffer))) > 0:
        at = 0
        while at < length:
            number, _, size, kind = struct.unpack_from("<QqHB", buffer, at)
            found.append((number, kind, buffer.raw[at + 19 : at + size].split(b"\0")[0].decode()))
            at += size
    os.close(fd)
    return found


IOMMU = "/sys/class/iommu/dmar0"
for name in ("address", "cap", "domains_supported", "domains_used", "ecap", "version"):
    read(f"{IOMMU}/intel-iommu/{name}")
for directory in (
    "/sys/bus/pci/drivers/vfio-pci",
    "/sys/kernel/iommu_groups/9",
    f"{NVME}/vfio-dev",
):
    dots = sorted(entries(directory), key=lambda entry: entry[2])[:2]
    ask(f"dots of {directory}", lambda dots=dots: [entry[1:] for entry in dots])
    ask("their inodes", lambda dots=dots, top=directory: [
        number == os.stat(f"{top}/{name}").st_ino for number, _, name in dots
    ])  # fmt: skip
for directory in ("/sys/bus/pci/drivers/vfio-pci", "/sys/kernel/iommu_groups", IOMMU):
    ask(f"links to {directory}", lambda top=directory: os.stat(top).st_nlink)
ask("size of a link", lambda: os.lstat(f"{NVME}/driver").st_size)
ask("made lately", lambda: os.stat(f"{NVME}/vendor").st_mtime > 1_500_000_000)


def call(fd, number, *words):
    """An ioctl of such a structure, its size first; what it holds afterwards."""
    payload = bytearray(struct.pack(f"<{len(words) + 1}i", 4 * len(words) + 4, *words))
    fcntl.ioctl(fd, ord(";") << 8 | number, payload)
    return struct.unpack(f"<{len(words) + 1}i", payload)


def bind(bdf, iommufd):
    fd = os.open(f"/dev/vfio/devices/{os.listdir(f'{bdf}/vfio-dev')[0]}", os.O_RDWR)
    call(fd, BIND, 0, iommufd, 0)
    return fd


def used(when):
    with open(f"{IOMMU}/intel-iommu/domains_used") as file:
        print(f"page tables in use, {when}: {file.read().strip()}")


IOAS_ALLOC, BIND, ATTACH, DETACH = 0x81, 0x76, 0x77, 0x78
iommufd = os.open("/dev/iommu", os.O_RDWR)
first, second = (call(iommufd, IOAS_ALLOC, 0, 0)[2] for _ in range(2))
nvme = bind(NVME, iommufd)
used("one group is a client's")
nic = bind(NIC, iommufd)
used("two are")
call(nvme, ATTACH, 0, first)
call(nic, ATTACH, 0, first)
used("both have the same")
call(nic, ATTACH, 0, second)
used("each has one")
call(nvme, DETACH, 0)
used("one has none")
os.close(nic)
os.close(nvme)
used("the machine has them back")
