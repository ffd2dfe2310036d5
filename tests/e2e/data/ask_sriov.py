"""Virtual functions by /sys and their tokens: run by test_bus.py here, and once in the reference
guest."""

import array
import errno
import fcntl
import os
import struct

VFIO = "/sys/bus/pci/drivers/vfio-pci"
PF, VF, VF1 = "0000:05:00.0", "0000:05:10.0", "0000:05:10.2"
BIND_IOMMUFD, FEATURE, GROUP_STATUS = 0x3B76, 0x3B75, 0x3B67
GET_INFO, REGION_INFO, IRQ_INFO, HOT_RESET_INFO, HOT_RESET, RESET = (
    *(0x3B6B, 0x3B6C, 0x3B6D, 0x3B70, 0x3B71, 0x3B6F),
)
CONFIG = 7 << 40
TOKEN = bytes.fromhex("52ac9bff3a884fbd901a0d767c3b6c97")
# What is there and not here, or depends on the time.
LEFT_OUT = ("firmware_node", "power_state", "config", "local_cpus", "local_cpulist", "link")


def device(bdf, name=""):
    return f"/sys/bus/pci/devices/{bdf}/{name}".rstrip("/")


def write(path, data):
    try:
        fd = os.open(path, os.O_WRONLY)
        try:
            answer = os.write(fd, data.encode())
        finally:
            os.close(fd)
    except OSError as error:
        answer = errno.errorcode[error.errno]
    print(f"write {path.removeprefix('/sys/')} {data!r}: {answer}", flush=True)


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError as error:
        return errno.errorcode[error.errno]


def show(bdf):
    """Every entry of a function's directory."""
    for name in sorted(os.listdir(device(bdf))):
        path = device(bdf, name)
        mode = os.lstat(path).st_mode & 0o777
        if name in LEFT_OUT:
            continue
        if os.path.islink(path):
            print(bdf, name, os.readlink(path))
        elif name.startswith("resource") and name != "resource":
            print(bdf, name, f"{mode:o}", os.stat(path).st_size)
        elif not os.path.isdir(path):
            print(bdf, name, f"{mode:o}", repr(read(path)) if mode & 0o444 else "")


def machine():
    for path in ("/dev/vfio", "/dev/vfio/devices", "/sys/class/vfio-dev", "/sys/bus/pci/devices"):
        print(path, sorted(os.listdir(path)))
    print("groups", sorted(os.listdir("/sys/kernel/iommu_groups"), key=int))


def ioctl(fd, number, data):
    """The result or an errno's name, and the structure after it."""
    memory = array.array("B", data)
    try:
        answer = fcntl.ioctl(fd, number, memory, True)
    except OSError as error:
        answer = errno.errorcode[error.errno]
    return answer, bytes(memory)


def open_cdev(bdf):
    return os.open(f"/dev/vfio/devices/{os.listdir(device(bdf, 'vfio-dev'))[0]}", os.O_RDWR)


def bind(fd, token=None):
    memory = array.array("B", token or b"\0")
    address = memory.buffer_info()[0] if token else 0
    data = struct.pack("IIiIQ", 24, 1 if token else 0, iommufd, 0, address)
    return ioctl(fd, BIND_IOMMUFD, data)[0]


def tell(name, fd):
    """All that a client learns of a device."""
    print(name, "info", ioctl(fd, GET_INFO, struct.pack("IIIIII", 24, 0, 0, 0, 0, 0)))
    for index in range(9):
        data = struct.pack("IIIIQQ", 40, 0, index, 0, 0, 0) + bytes(8)
        print(name, "region", index, ioctl(fd, REGION_INFO, data))
    for index in range(5):
        print(name, "irq", index, ioctl(fd, IRQ_INFO, struct.pack("IIII", 16, 0, index, 0)))
    print(name, "scope", ioctl(fd, HOT_RESET_INFO, struct.pack("III", 200, 0, 0) + bytes(188)))
    print(name, "hot reset", ioctl(fd, HOT_RESET, struct.pack("III", 12, 0, 0))[0])
    print(name, "config", os.pread(fd, 4096, CONFIG).hex())


print("== switched off")
print(repr(read("/sys/module/vfio_pci/parameters/enable_sriov")))
write(device(PF, "sriov_numvfs"), "1")
write(device(PF, "sriov_numvfs"), "9")
write("/sys/module/vfio_pci/parameters/enable_sriov", "Y")

print("== numbers")
for text in ("8", "-1", "x", "0", "65536", " 1", "9", "0x2\n", "3", "2"):
    write(device(PF, "sriov_numvfs"), text)
for bdf in (PF, VF, VF1):
    show(bdf)
with open(device(VF, "config"), "rb") as file:
    print(file.read().hex())
with open(device(PF, "config"), "rb") as file:
    print(file.read()[0x160:0x190].hex())
machine()

print("== tokens")
iommufd = os.open("/dev/iommu", os.O_RDWR)
vf = open_cdev(VF)
print("VF without", bind(vf))
print("VF before the PF", bind(vf, TOKEN))
pf = open_cdev(PF)
print("PF", bind(pf, TOKEN))
print("VF with another", bind(vf, bytes(16)))
print("VF", bind(vf, TOKEN))
print("new token", ioctl(pf, FEATURE, struct.pack("II", 24, 1 << 17) + bytes(16))[0])
os.close(pf)
pf = open_cdev(PF)
print("PF without", bind(pf))
print("PF with the old", bind(pf, TOKEN))
print("PF with the new", bind(pf, bytes(16)))
print("feature of a VF", ioctl(vf, FEATURE, struct.pack("II", 24, 1 << 17) + bytes(16))[0])
nvme = open_cdev("0000:01:00.0")
print("neither", bind(nvme, TOKEN))

print("== what clients see")
tell("VF", vf)
tell("PF", pf)
print("BARs", os.pread(vf, 4, 0).hex(), os.pread(vf, 4, 3 << 40).hex())
os.pwrite(vf, b"\0\0", CONFIG + 4)
print("memory off", os.pread(vf, 2, CONFIG + 4).hex(), os.pread(vf, 4, 0).hex())
for at in range(0, 0x40, 4):
    os.pwrite(vf, b"\xff" * 4, CONFIG + at)
    print(f"{at:02x}", os.pread(vf, 4, CONFIG + at).hex())
print("reset", ioctl(vf, RESET, b"\0")[0])
os.close(vf)
os.close(pf)

print("== groups")
group = os.open("/dev/vfio/13", os.O_RDWR)
print(ioctl(group, GROUP_STATUS, struct.pack("II", 8, 0)))
os.close(group)

print("== less and more")
write(device(PF, "sriov_numvfs"), "0")
machine()
print(sorted(name for name in os.listdir(device(PF)) if "virt" in name))
for text in ("0", "2", "n"):
    write(device(PF, "sriov_drivers_autoprobe"), text)
write(device(PF, "sriov_numvfs"), "1")
print(os.path.exists(device(VF, "driver")), repr(read(device(VF, "driver_override"))))
write("/sys/bus/pci/drivers_probe", VF)
write(f"{VFIO}/unbind", VF)
write(device(VF, "driver_override"), "\n")
write("/sys/bus/pci/drivers_probe", VF)
write(f"{VFIO}/bind", VF)
write(f"{VFIO}/new_id", "8086 10ca")
print(os.path.exists(device(VF, "driver")))
write(f"{VFIO}/bind", VF)
write(device(PF, "sriov_drivers_autoprobe"), "1")
write("/sys/bus/pci/drivers_probe", VF)
print(os.path.exists(device(VF, "driver")))
write(device(VF, "sriov_vf_msix_count"), "1")
write(device(VF, "sriov_vf_msix_count"), "-1")
write(f"{VFIO}/unbind", VF)
write(device(VF, "sriov_vf_msix_count"), "1")

print("== the end of the PF")
write(f"{VFIO}/unbind", PF)
print(os.path.exists(device(VF)), repr(read(device(PF, "sriov_numvfs"))))
write(device(PF, "sriov_numvfs"), "1")
write(device(PF, "sriov_numvfs"), "0")
write(f"{VFIO}/bind", PF)
write(device(PF, "sriov_numvfs"), "7")
machine()
write(device(VF, "remove"), "1")
write(device(PF, "remove"), "1")
machine()
write("/sys/bus/pci/rescan", "1")
machine()
print(repr(read(device(PF, "sriov_numvfs"))), os.path.exists(device(PF, "driver")))
write(device(PF, "driver_override"), "vfio-pci")
write("/sys/bus/pci/drivers_probe", PF)
write(device(PF, "sriov_numvfs"), "1")
write(device("0000:00:05.0", "remove"), "1")
machine()
