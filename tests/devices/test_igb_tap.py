"""igb on a tap interface, in a network namespace that the test makes for itself."""

import ctypes
import fcntl
import os
import socket
import struct

import pytest

from iommufs.devices.igb import Igb
from tests.devices import igb_registers as reg
from tests.devices.igb_driver import SIZE, frame
from tests.devices.test_igb_threads import open_again, plug

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
ETH_P_ALL = 3
KIND = frame()[12:14]  # other frames are of the kernel's own making
NAME = "igb-test"
RCTL = reg.RCTL_EN | reg.RCTL_BAM | reg.RCTL_SECRC  # the kernel's own frames are multicasts


@pytest.fixture
def namespace():
    """This thread has an own one meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"/dev/net/tun: {error.strerror}")
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET):
        os.close(home)
        pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}")
    yield
    assert libc.setns(home, CLONE_NEWNET) == 0
    os.close(home)


class Interface:
    """What a program on this machine has of it; up."""

    def __init__(self):
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.settimeout(20)
        request = struct.pack("16sH14x", NAME.encode(), 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(self._socket, SIOCGIFFLAGS, request), 16)
        request = struct.pack("16sH14x", NAME.encode(), flags | IFF_UP)
        fcntl.ioctl(self._socket, SIOCSIFFLAGS, request)
        self._socket.bind((NAME, 0))

    def send(self, data):
        self._socket.send(data)

    def receive(self):
        while (data := self._socket.recv(9728))[12:14] != KIND:
            pass
        return data

    def close(self):
        self._socket.close()


@pytest.fixture
async def port(namespace, vfio):
    return await plug(vfio, {"tap": NAME}, RCTL)


@pytest.fixture
def interface(port):
    interface = Interface()
    yield interface
    interface.close()


async def test_frames_go_both_ways(port, interface):
    assert port.read(reg.STATUS) & reg.STATUS_LU
    for i in range(100):
        port.send_in_turn(frame(60 + i, seed=i))
        assert interface.receive() == frame(60 + i, seed=i)
        interface.send(frame(200 + i, seed=i))
        assert port.wait_for_one_of(200 + i) == frame(200 + i, seed=i)


async def test_short_frames_are_padded(port, interface):
    interface.send(frame(30))
    assert port.wait_for_one_of(60) == frame(30).ljust(60, b"\0")


async def test_more_frames_than_there_is_room_for(vfio, port, interface):
    """The function takes none of them: it can be closed, and the next client hears again."""
    port.write(port.rx(reg.TAIL), port.read(port.rx(reg.HEAD)))
    for i in range(20 * SIZE):
        interface.send(frame(1500, seed=i))
    port.client.until(lambda: port.read(reg.MPC))
    vfio.close(port.client.df)
    again = await open_again(vfio, port.client.index, RCTL)
    interface.send(frame(99))
    assert again.wait_for_one_of(99) == frame(99)


async def test_an_interface_that_is_down_loses_what_is_sent(port):
    port.send(frame())
    port.client.until(lambda: port.tx_done(0))
    interface = Interface()
    port.send(frame(99))
    assert interface.receive() == frame(99)
    interface.close()


async def test_a_tap_and_a_wire(vfio, port):
    """Both hear the function; they do not hear each other."""
    interface = Interface()
    vfio.close(port.client.df)
    first = await plug(vfio, {"tap": "igb-other", "wire": "tap"}, RCTL)
    second = await plug(vfio, {"wire": "tap"})
    first.send(frame(99))
    assert second.wait_for_one_of(99) == frame(99)
    interface.close()


@pytest.mark.parametrize(
    ("name", "why"),
    [(NAME, f"tap: {NAME}: Device or resource busy"), ("x" * 16, "tap: x{16}: File name too long")],
)
async def test_a_name_that_cannot_be_had_says_why(port, host, name, why):
    assert port.read(reg.STATUS) & reg.STATUS_LU
    with pytest.raises(ValueError, match=f"^{why}$"):
        Igb(host, {"tap": name})
