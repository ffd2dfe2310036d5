"""Changing the machine through /sys: run by test_bus.py here, and once in the reference guest."""

import array
import errno
import fcntl
import os
import struct
import threading

BUS = "/sys/bus/pci"
VFIO = f"{BUS}/drivers/vfio-pci"
EDU, NVME, NIC = "0000:00:06.0", "0000:01:00.0", "0000:02:00.0"
BRIDGED, TESTDEV = "0000:04:01.0", "0000:04:02.0"
AHCI, BRIDGE, PORT, VIRTIO = "0000:00:1f.2", "0000:03:00.0", "0000:00:02.0", "0000:00:1d.0"
BIND_IOMMUFD, GROUP_STATUS, SET_IRQS = 0x3B76, 0x3B67, 0x3B6E


def device(bdf, name=""):
    return f"{BUS}/devices/{bdf}/{name}".rstrip("/")


def name_of(error):
    return errno.errorcode[error.errno]


def write(path, data):
    try:
        fd = os.open(path, os.O_WRONLY)
        try:
            answer = os.write(fd, data.encode())
        finally:
            os.close(fd)
    except OSError as error:
        answer = name_of(error)
    print(f"write {path.removeprefix('/sys/')} {data[:40]!r}: {answer}", flush=True)


def read(path):
    try:
        with open(path) as file:
            answer = file.read()
    except OSError as error:
        answer = name_of(error)
    print(f"read {path.removeprefix('/sys/')}: {answer!r}", flush=True)


def link(path):
    try:
        answer = os.path.basename(os.readlink(path))
    except OSError as error:
        answer = name_of(error)
    print(f"link {path.removeprefix('/sys/')}: {answer}", flush=True)


def names(path):
    try:
        answer = sorted(os.listdir(path))
    except OSError as error:
        answer = name_of(error)
    print(f"list {path.removeprefix('/sys/')}: {answer}", flush=True)


def ioctl(what, fd, number, data):
    memory = array.array("B", data)
    try:
        answer = fcntl.ioctl(fd, number, memory, True)
    except OSError as error:
        answer = name_of(error)
    print(f"{what}: {answer}", flush=True)
    return bytes(memory)


def state(bdf):
    """What tells who has a device, and what comes and goes with that."""
    link(device(bdf, "driver"))
    for name in ("driver_override", "enable", "power/control", "uevent"):
        read(device(bdf, name))
    names(device(bdf, "vfio-dev"))
    print(f"supplier {os.path.exists(device(bdf, 'waiting_for_supplier'))}")


def nodes():
    """What is for clients of what vfio-pci has."""
    names("/sys/class/vfio-dev")
    names("/sys/class/vfio")
    names("/dev/vfio")
    names("/dev/vfio/devices")
    print("chars", sorted(n for n in os.listdir("/sys/dev/char") if n.startswith(("251:", "252:"))))


print("== unbind and bind")
write(f"{VFIO}/unbind", "00:06.0")
write(f"{VFIO}/unbind", f"{AHCI}")
write(f"{VFIO}/unbind", "nothing")
write(f"{VFIO}/bind", EDU)
write(f"{VFIO}/unbind", f"{EDU}\n")
state(EDU)
nodes()
read("/sys/kernel/iommu_groups/5/type")
write(f"{VFIO}/unbind", EDU)
write(f"{BUS}/drivers/pcieport/bind", EDU)
write(f"{VFIO}/unbind", NVME)
write(f"{VFIO}/bind", NVME)
names(device(NVME, "vfio-dev"))
write(f"{VFIO}/bind", EDU)
names(device(EDU, "vfio-dev"))
nodes()
link("/sys/dev/char/251:0")
read("/sys/dev/char/252:0/uevent")
names(f"{VFIO}")

print("== driver_override")
write(device(EDU, "driver_override"), "\n")
read(device(EDU, "driver_override"))
write(f"{VFIO}/unbind", EDU)
write(f"{VFIO}/bind", EDU)
write(f"{BUS}/drivers_probe", EDU)
link(device(EDU, "driver"))
write(device(EDU, "driver_override"), "no-such-driver and more\nand more")
read(device(EDU, "driver_override"))
write(f"{VFIO}/bind", EDU)
write(f"{BUS}/drivers_probe", EDU)
link(device(EDU, "driver"))
write(device(EDU, "driver_override"), "x" * 4095)
write(device(EDU, "driver_override"), "x" * 4094)
write(device(EDU, "driver_override"), "x" * 5000)
write(device(EDU, "driver_override"), "vfio-pci\0\0")
read(device(EDU, "driver_override"))
write(f"{BUS}/drivers_probe", "0000:00:77.0")
write(f"{BUS}/drivers_probe", f"{EDU}\n")
link(device(EDU, "driver"))
write(f"{BUS}/drivers_probe", EDU)
write(f"{VFIO}/bind", EDU)

print("== new_id and remove_id")
write(f"{VFIO}/unbind", EDU)
write(device(EDU, "driver_override"), "")
write(device(EDU, "driver_override"), "\n")
new = ("", "1234", "nonsense", "1234 11e9", "1234 11e9", "1234 11e8 1af4 1101", "1234 11e8 1af4")
for text in new:
    write(f"{VFIO}/new_id", text)
    link(device(EDU, "driver"))
write(f"{VFIO}/new_id", "1234 11e8 1af4 1100 ff0000 ff0000")
link(device(EDU, "driver"))
write(f"{VFIO}/unbind", EDU)
for text in ("1234", "1234 11e8 1af4 1100", *["1234 11e8"] * 4, "8086 1"):
    write(f"{VFIO}/remove_id", text)
write(f"{VFIO}/bind", EDU)
write(f"{VFIO}/new_id", "0x1234 0x11e8 ffffffff ffffffff 0 0 1")
write(f"{VFIO}/new_id", "0x1234 0x11e8")
link(device(EDU, "driver"))
write(f"{VFIO}/new_id", "1234 11e8")
write(f"{VFIO}/remove_id", "1234 11e9")

print("== other drivers")
write(f"{VFIO}/bind", AHCI)
write(device(AHCI, "driver_override"), "vfio-pci")
read(device(AHCI, "enable"))
write(device(AHCI, "enable"), "1")
read(device(AHCI, "enable"))
write(device(AHCI, "enable"), "x")
write(device(AHCI, "enable"), "0")
write(device(AHCI, "enable"), "0")
write(f"{BUS}/drivers_probe", AHCI)
state(AHCI)
names("/dev/vfio")
write(device(AHCI, "enable"), "1")
write(f"{VFIO}/unbind", AHCI)
write(device(AHCI, "driver_override"), "\n")
write(device(BRIDGE, "driver_override"), "vfio-pci")
write(f"{BUS}/drivers_probe", BRIDGE)
write(f"{VFIO}/bind", BRIDGE)
link(device(BRIDGE, "driver"))
write(device(BRIDGE, "driver_override"), "\n")
write(f"{VFIO}/bind", PORT)
write(f"{VFIO}/unbind", PORT)
write(f"{BUS}/drivers/pcieport/bind", PORT)
write(f"{BUS}/drivers/pcieport/unbind", PORT)
link(device(PORT, "driver"))
write(f"{BUS}/drivers/pcieport/bind", PORT)
link(device(PORT, "driver"))

print("== in use")
iommufd = os.open("/dev/iommu", os.O_RDWR)
index = os.listdir(device(EDU, "vfio-dev"))[0]
cdev = os.open(f"/dev/vfio/devices/{index}", os.O_RDWR)
ioctl("bind", cdev, BIND_IOMMUFD, struct.pack("IIII", 16, 0, iommufd, 0))
request = os.eventfd(0)
ioctl("req", cdev, SET_IRQS, struct.pack("IIIIIi", 24, 0x24, 4, 0, 1, request))
idle = os.open(f"/dev/vfio/devices/{index}", os.O_RDWR)
write(device(EDU, "enable"), "1")
read(device(EDU, "enable"))
done = []


def unbind():
    try:
        done.append(os.write(unbinding, EDU.encode()))
    except OSError as error:
        done.append(name_of(error))


unbinding = os.open(f"{VFIO}/unbind", os.O_WRONLY)
thread = threading.Thread(target=unbind)
thread.start()
print("asked", os.eventfd_read(request), done)
link(device(EDU, "driver"))
names("/dev/vfio")
print("node", os.path.exists(f"/dev/vfio/devices/{index}"))
names(device(EDU, "vfio-dev"))
ioctl("bind the idle one", idle, BIND_IOMMUFD, struct.pack("IIII", 16, 0, iommufd, 0))
os.close(cdev)
print(done)
ioctl("bind the idle one", idle, BIND_IOMMUFD, struct.pack("IIII", 16, 0, iommufd, 0))
ioctl("req", idle, SET_IRQS, struct.pack("IIIIIi", 24, 0x24, 4, 0, 1, request))
os.close(idle)
thread.join()
print(done)
state(EDU)
write(f"{VFIO}/bind", EDU)
names(device(EDU, "vfio-dev"))

print("== a group")
status = struct.pack("II", 8, 0)
fd = os.open("/dev/vfio/11", os.O_RDWR)
print(ioctl("status", fd, GROUP_STATUS, status))
write(f"{VFIO}/unbind", BRIDGED)
names("/dev/vfio")
print(ioctl("status", fd, GROUP_STATUS, status))
write(f"{VFIO}/unbind", TESTDEV)
names("/dev/vfio")
print(ioctl("status", fd, GROUP_STATUS, status))
write(f"{VFIO}/bind", BRIDGED)
try:
    again = os.open("/dev/vfio/11", os.O_RDWR)
    print(ioctl("status of the new one", again, GROUP_STATUS, status))
    os.close(again)
except OSError as error:
    print("open", name_of(error))
os.close(fd)
write(f"{VFIO}/bind", TESTDEV)
names("/sys/class/vfio")

print("== remove and rescan")
write(device(NVME, "remove"), "x")
write(device(NVME, "remove"), "0")
names("/sys/kernel/iommu_groups/9/devices")
kept = os.open(device(NVME, "vendor"), os.O_RDONLY)
override = os.open(device(NVME, "driver_override"), os.O_WRONLY)
directory = os.open(device(NVME), os.O_RDONLY)
write(device(NVME, "remove"), "1\n")
names(device(NVME))
try:
    print(os.read(kept, 10))
except OSError as error:
    print("read", name_of(error))
try:
    print(os.write(override, b"x"))
except OSError as error:
    print("write", name_of(error))
try:
    print(os.listdir(directory))
except OSError as error:
    print("list", name_of(error))
names("/sys/kernel/iommu_groups/9/devices")
names("/sys/bus/pci/devices")
print("below the port", NVME in os.listdir("/sys/devices/pci0000:00/0000:00:02.0"))
write(f"{BUS}/rescan", "x")
write(f"{BUS}/rescan", "0")
write(device(EDU, "rescan"), "1")
print(os.path.exists(device(NVME)))
write(f"{BUS}/rescan", "1")
print(os.path.exists(device(NVME)))
link(device(NVME, "iommu_group"))
write(f"{BUS}/drivers_autoprobe", "2")
write(f"{BUS}/drivers_autoprobe", "0")
read(f"{BUS}/drivers_autoprobe")
write(f"{BUS}/drivers_autoprobe", "1")
state(NVME)
write(device(NVME, "driver_override"), "vfio-pci")
write(f"{BUS}/drivers_probe", NVME)
state(NVME)
for bdf in (EDU, NVME, NIC):
    write(device(bdf, "remove"), "1")
names("/sys/kernel/iommu_groups")
write(f"{BUS}/rescan", "1")
for bdf in (EDU, NVME, NIC):
    link(device(bdf, "iommu_group"))
    link(device(bdf, "driver"))
    read(device(bdf, "reset_method"))
write(device("0000:00:04.0", "remove"), "1")
names(f"{BUS}/devices")
write(f"{BUS}/rescan", "1")
names(f"{BUS}/devices")
link(device("0000:00:04.0", "driver"))
link(device(BRIDGED, "iommu_group"))

print("== the rest")
NIC1 = "0000:02:00.1"
read(device(NIC, "reset_method"))
methods = ("pm", "flr", "bus", "pm bus", "bus pm", "default", " pm  pm\n", "pm\n", "", "x", "pm x")
for text in (*methods, "\n"):
    write(device(NIC, "reset_method"), text)
    read(device(NIC, "reset_method"))
for text in ("0", "2", "x", "1"):
    write(device(NIC, "reset"), text)
write(device(NIC, "reset_method"), "default")
write(device(NIC, "reset"), "1")
write(device(NIC1, "reset_method"), "bus")
for name in ("broken_parity_status", "d3cold_allowed", "msi_bus"):
    for text in ("x", "2", "-1", "0", "1"):
        write(device(EDU, name), text)
        read(device(EDU, name))
for text in ("on", "auto", "x", "on\n"):
    write(device(EDU, "power/control"), text)
    read(device(EDU, "power/control"))
write(device(EDU, "power/autosuspend_delay_ms"), "1")
for text in ("add", "change\n", "x", "add 12345678-1234-1234-1234-123456789012 A=B", "add x"):
    write(device(EDU, "uevent"), text)
write(f"{VFIO}/uevent", "add")
write(f"{BUS}/uevent", "add")
write("/sys/module/vfio_pci/uevent", "add")
write("/sys/class/vfio-dev/vfio3/uevent", "change")
write("/sys/kernel/iommu_groups/5/type", "DMA")
write("/sys/kernel/iommu_groups/5/type", "x")
for text in ("x", "Y", "0", "on", "off", "yes", "n"):
    write("/sys/module/vfio_pci/parameters/nointxmask", text)
    read("/sys/module/vfio_pci/parameters/nointxmask")
write("/sys/module/iommufd/parameters/allow_unsafe_interrupts", "1")
read("/sys/module/iommufd/parameters/allow_unsafe_interrupts")
with open(device(NIC, "config"), "r+b", buffering=0) as config:
    print(os.pwrite(config.fileno(), b"\x00\x00", 4), os.pread(config.fileno(), 4, 4).hex())
    print(os.pwrite(config.fileno(), b"\x47\x05", 4), os.pread(config.fileno(), 4, 4).hex())
    print(os.pwrite(config.fileno(), b"\xff" * 4, 0), os.pread(config.fileno(), 4, 0).hex())
    print(os.pwrite(config.fileno(), b"\x5a", 0x3C), os.pread(config.fileno(), 4, 0x3C).hex())
    for at in (4094, 4096, 5000):
        try:
            print(at, os.pwrite(config.fileno(), b"\x00" * 4, at))
        except OSError as error:
            print(at, name_of(error))
write(device(PORT, "reset_subordinate"), "0")
write(device(PORT, "reset_subordinate"), "x")
