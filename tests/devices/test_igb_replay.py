"""Frames of a file come in as if over a wire (`pcap_in` of igb)."""

import os
import re
import struct

import pytest

from iommufs.devices.igb import Igb
from tests.devices import igb_registers as reg
from tests.devices.igb_driver import PROMISCUOUS, SIZE, Driver, frame

MICROSECONDS, NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D
ETHERNET, WIRELESS = 1, 105


def capture(frames, order="<", magic=MICROSECONDS, link=ETHERNET):
    data = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for one in frames:
        data += struct.pack(f"{order}IIII", 1, 2, len(one), len(one)) + one
    return data


@pytest.fixture
def begin(host, tmp_path):
    """A driver of a function with such a file; its receiver is on."""

    def make(data, **settings):
        path = tmp_path / "frames.pcap"
        path.write_bytes(data)
        return Driver(host, Igb(host, {"pcap_in": str(path)})).begin(**settings)

    return make


def all_received(driver):
    frames = []
    while more := driver.received():
        frames += more
    return frames


@pytest.mark.parametrize("magic", [MICROSECONDS, NANOSECONDS])
@pytest.mark.parametrize("order", "<>")
def test_all_frames_come_in_their_order(begin, order, magic):
    """More than there are descriptors, and than the device holds."""
    frames = [frame(60 + 37 * i % 1400, seed=i) for i in range(10 * SIZE)]
    driver = begin(capture(frames, order, magic))
    assert all_received(driver) == frames
    assert driver.read(reg.MPC) == 0
    assert driver.read(reg.GPRC) == len(frames)


def test_frames_of_several_buffers_come(begin):
    frames = [frame(9000, seed=i) for i in range(20)]
    driver = begin(capture(frames), rctl=PROMISCUOUS | reg.RCTL_LPE)
    assert all_received(driver) == frames


def test_a_short_frame_is_padded(begin):
    driver = begin(capture([frame(60)[:20]]))
    assert driver.received() == [frame(60)[:20] + bytes(40)]


def test_the_link_is_up_without_a_wire(begin):
    driver = begin(capture([]))
    assert driver.read(reg.STATUS) & reg.STATUS_LU
    assert driver.received() == []


def test_nothing_comes_before_there_are_descriptors(begin):
    driver = begin(capture([frame()]), buffers=0)
    assert driver.read(reg.TPR) == 0
    driver.write(driver.rx(reg.TAIL), 5)
    driver.host.finish()
    assert driver.received() == [frame()]


def test_they_come_anew_after_a_reset(begin):
    frames = [frame(100, seed=i) for i in range(5)]
    driver = begin(capture(frames))
    assert driver.received() == frames
    for reset in (driver.model.reset, lambda: driver.write(reg.CTRL, reg.CTRL_RST)):
        reset()
        driver.host.finish()
        driver.taken = 0
        driver.begin()
        assert driver.received() == frames


def test_what_comes_before_the_file_is_cut_off_comes(begin):
    driver = begin(capture([frame(), frame(70)])[:-1])
    assert driver.received() == [frame()]
    ((report, _),) = driver.host.reports
    assert re.fullmatch(r"no more frames: it is cut off: .*/frames\.pcap", report)


@pytest.mark.parametrize("length", [0, 9729, 0xFFFFFFFF])
def test_no_frame_is_empty_or_too_long(begin, length):
    driver = begin(capture([frame()]) + struct.pack("<IIII", 0, 0, length, length) + bytes(99))
    assert driver.received() == [frame()]
    assert "a frame is empty or too long" in driver.host.reports[0][0]


def test_a_file_that_is_gone_later_is_reported(begin, tmp_path):
    driver = begin(capture([frame()]))
    (tmp_path / "frames.pcap").unlink()
    driver.model.reset()
    driver.begin()
    assert "no more frames: No such file or directory" in driver.host.reports[0][0]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "No such file or directory"),
        (os.mkdir, "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.write_bytes(b"abc"), "too short"),
        (lambda path: path.write_bytes(bytes(99)), "not in libpcap's format"),
        (
            lambda path: path.write_bytes(capture([], link=WIRELESS)),
            "its frames are not Ethernet's",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused(host, tmp_path, make, why):
    path = tmp_path / "frames"
    make(path)
    with pytest.raises(ValueError, match=re.escape(f"pcap_in: {path}: {why}")):
        host.plug(Igb(host, {"pcap_in": str(path)}))
