"""What a program meets in /sys: run by test_sysfs.py here, and once in the reference guest."""

import errno
import os

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
