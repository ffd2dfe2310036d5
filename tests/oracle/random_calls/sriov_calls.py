"""Calls about virtual functions: made and taken away, opened with tokens in any order with their
physical one, by cdevs and by groups.

None is taken away while it is open: that would wait for us.
"""

import ctypes
import errno
import os
import struct
import uuid

import config_calls
from config_calls import tell_changes
from device_calls import PROBE, SET
from world import DATA, FENCE, libc, outcome, word

BUS = "/sys/bus/pci/devices"
PF = "0000:05:00.0"
ENABLE = "/sys/module/vfio_pci/parameters/enable_sriov"
TOKENS = [uuid.UUID(int=n) for n in (0, 1, 0x123456789ABCDEF0 << 64 | 0xFEDCBA98)]
VF_TOKEN, BIND_FLAG_TOKEN = 0, 1
ATTRIBUTES = (
    "sriov_numvfs", "sriov_totalvfs", "sriov_offset", "sriov_stride", "sriov_vf_device",
    "sriov_drivers_autoprobe", "sriov_vf_total_msix",
)  # fmt: skip
OF_VF = ("vendor", "device", "class", "subsystem_vendor", "revision", "resource",
         "reset_method", "ari_enabled", "driver_override", "modalias", "enable")  # fmt: skip


def attempt(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]


def read_file(path):
    def read():
        with open(path, "rb", buffering=0) as file:
            return file.read(4096).decode(errors="replace").strip().replace("\n", "|")

    return attempt(read)


def write_file(path, data):
    def write():
        with open(path, "wb", buffering=0) as file:
            return file.write(data)

    return attempt(write)


def link(path):
    return os.path.basename(attempt(os.readlink, path))


def functions(world):
    """The physical one and those that it has, as the tree shows them."""
    names = sorted(name for name in os.listdir(f"{BUS}/{PF}") if name.startswith("virtfn"))
    return [PF] + [link(f"{BUS}/{PF}/{name}") for name in names]


def cdev(address):
    found = attempt(os.listdir, f"{BUS}/{address}/vfio-dev")
    return found[0] if isinstance(found, list) and found else None


def opened(world, *addresses):
    return [key for key in world.devices if key[0] in addresses]


def close_one(world, key):
    fd = world.devices.pop(key)
    world.spaces.pop(fd, None)
    world.bound.pop(fd, None)
    os.close(fd)
    world.say("close of", key[0], fd)


def set_numvfs(world):
    random = world.random
    value = random.of(b"0", b"1", b"2", b"2", b"3\n", b"7", b"8", b"-1", b"x", b"0x2", b"", b"1 ")
    vfs = functions(world)[1:]
    if opened(world, *vfs):
        if random.percent(60):
            return
        for key in opened(world, *vfs):
            close_one(world, key)
    close_groups(world)
    world.say("numvfs", value, write_file(f"{BUS}/{PF}/sriov_numvfs", value))
    world.say("functions", *(f"{name}:{cdev(name)}" for name in functions(world)))


def close_groups(world):
    for number in sorted(world.groups):
        os.close(world.groups.pop(number))
        world.say("close of group", number)


def enable(world):
    value = world.random.of(b"Y", b"Y", b"Y", b"1\n", b"N", b"x", b"")
    world.say("enable_sriov", value, write_file(ENABLE, value), read_file(ENABLE))


def read_attributes(world):
    name = world.random.of(*ATTRIBUTES)
    world.say(name, read_file(f"{BUS}/{PF}/{name}"))
    address = world.random.of(*functions(world))
    name = world.random.of(*OF_VF)
    world.say(address, name, read_file(f"{BUS}/{address}/{name}"))
    for name in ("driver", "physfn", "iommu_group"):
        world.say(address, name, link(f"{BUS}/{address}/{name}"))
    shown = set(os.listdir(f"{BUS}/{address}")) - {"firmware_node", "msi_irqs", "numa_node"}
    world.say(address, *sorted(shown))


def open_one(world):
    address = world.random.of(*functions(world))
    if len(world.devices) > 6:
        return
    name = cdev(address)
    fd = attempt(os.open, f"/dev/vfio/devices/{name}", os.O_RDWR)
    world.say("open of", address, name, fd)
    if isinstance(fd, int):
        world.devices[(address, fd)] = fd


def close_any(world):
    if world.devices:
        close_one(world, world.random.of(*sorted(world.devices)))


def bind(world):
    random = world.random
    unbound = [key for key in sorted(world.devices) if world.devices[key] not in world.bound]
    if not unbound:
        return
    key = random.of(*unbound)
    fd = world.devices[key]
    token = random.of(*TOKENS)
    ctypes.memmove(DATA, token.bytes, 16)
    flags, where = random.of(0, 0, 1, 1, 1, 2), random.of(DATA, DATA, DATA, DATA, FENCE - 8, 0)
    argsz = random.of(32, 32, 32, 24, 16)
    values = argsz, flags, random.of(*world.iommufds), 0, where
    result, _ = world.ioctl("BIND_IOMMUFD", fd, 0x3B76, struct.pack("<IIiIQ", *values) + bytes(8),
                            f"{key[0]} {flags} {token.int & 0xFF}")  # fmt: skip
    if result == 0:
        world.bound[fd] = values[2]


def any_bound(world):
    bound = [
        world.devices[key] for key in sorted(world.devices) if world.devices[key] in world.bound
    ]
    return world.random.of(*bound) if bound else -1


def set_token(world):
    random, fd = world.random, any_bound(world)
    token = random.of(*TOKENS)
    what = VF_TOKEN | random.of(SET, SET, SET, SET | PROBE, PROBE)
    data = struct.pack("<II", random.of(24, 24, 24, 23, 32, 8), what) + token.bytes + bytes(8)
    world.ioctl("VF_TOKEN", fd, 0x3B75, data, token.int & 0xFF)


def group(world):
    random = world.random
    address = random.of(*functions(world))
    number = link(f"{BUS}/{address}/iommu_group")
    if number not in world.groups:
        fd = attempt(os.open, f"/dev/vfio/{number}", os.O_RDWR)
        world.say("open of group", address, number, fd)
        if isinstance(fd, int):
            world.groups[number] = fd
            data = struct.pack("<i", world.iommufds[0])
            world.ioctl("GROUP_SET_CONTAINER", fd, 0x3B68, data)
        return
    token = random.of(*TOKENS)
    words = random.of("", f" vf_token={token}", f" vf_token={token}", f" vf_token={token} ",
                      f" vf_token={str(token).upper()}", f"  vf_token={token}", " vf_token=1",
                      f" vf_token={token}x", f" vf_token={token} vf_token={token}")  # fmt: skip
    name = (address + words).encode() + b"\0"
    ctypes.memmove(DATA, name, len(name))
    fd = outcome(libc.ioctl(world.groups[number], 0x3B6A, DATA))
    world.say("GROUP_GET_DEVICE_FD", number, address + words, fd)
    if isinstance(fd, int):
        world.devices[(address, fd)] = fd
        world.bound[fd] = world.iommufds[0]


def close_group(world):
    if world.groups:
        number = world.random.of(*sorted(world.groups))
        os.close(world.groups.pop(number))
        world.say("close of group", number)


def on_bound(call):
    def made(world):
        fd = any_bound(world)
        if fd >= 0:
            if fd not in world.spaces:
                tell_changes(world, fd)
            call(world, fd)

    return made


def attach(world, fd):
    ids = world.owned.get(world.bound[fd], {}).get("ioas", [])
    if not ids:
        world.current = world.bound[fd]
        result, cmd = world.sized("IOAS_ALLOC", world.current, 0x3B81, "II", 0, 0)
        if result == 0:
            world.learn("ioas", word(cmd, 8))
        return
    data = struct.pack("<III", 12, 0, ids[0])
    world.ioctl("ATTACH_IOMMUFD_PT", fd, 0x3B77, data)


def hot_reset(world, fd):
    data = struct.pack("<III", world.random.of(12, 60, 200), 0, 0) + bytes(200)
    world.ioctl("GET_PCI_HOT_RESET_INFO", fd, 0x3B70, data)
    data = struct.pack("<III", 12, 0, 0)
    world.ioctl("PCI_HOT_RESET", fd, 0x3B71, data)


CALLS = {
    set_numvfs: 8,
    enable: 2,
    read_attributes: 4,
    open_one: 12,
    close_any: 6,
    bind: 14,
    set_token: 6,
    group: 8,
    close_group: 3,
} | {
    on_bound(call): weight
    for call, weight in {
        attach: 3,
        hot_reset: 2,
        config_calls.write_anywhere: 8,
        config_calls.read_anywhere: 2,
        config_calls.size_bars: 2,
        config_calls.set_command: 3,
        config_calls.set_power: 2,
        config_calls.reset_by_config: 1,
        config_calls.reset: 2,
        config_calls.set_irqs: 4,
        config_calls.use_region: 4,
        config_calls.map_region: 3,
        config_calls.get_info: 3,
    }.items()
}
