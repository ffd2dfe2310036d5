"""DPDK's testpmd drives two functions of Intel's 82576 on one wire, through their VFIO groups."""

import re
import signal
import stat
import subprocess

import pytest

from tests.devices.igb_driver import frame
from tests.devices.test_igb_replay import capture

pytestmark = pytest.mark.mount

PORT = 'igb,wire=a,reset_methods=["flr"]'
ENOUGH = 1000  # frames that each port has received: all of its rings were used, several times


@pytest.fixture
def testpmd(start, debian):
    """Starts it on the functions with these addresses; they are not reset or bound beforehand."""
    plugins = next((debian.root / "usr/lib/x86_64-linux-gnu/dpdk").glob("pmds-*"))
    for directory in plugins.parents:
        if directory.stat().st_mode & stat.S_IWOTH:
            pytest.skip(f"DPDK loads nothing from below {directory}, where anybody may write")

    def start_testpmd(*arguments, devices):
        count = range(1, len(devices) + 1)
        return start(
            *debian.command("usr/bin/dpdk-testpmd"), "-d", plugins,
            *("--no-huge", "-m", "64", "--no-telemetry", "--no-shconf", "--iova-mode=va"),
            *(word for i in count for word in ("-a", f"0000:00:{i:02x}.0")), "--",
            *("--total-num-mbufs=2048", "--nb-cores=1", "--txd=64", "--rxd=64", *arguments),
            options=[word for device in devices for word in ("--device", device)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start_testpmd


def test_frames_go_round_between_two_ports(testpmd):
    process = testpmd("--tx-first", "--burst=8", "--stats-period=1", devices=[PORT, PORT])
    received = {}
    while len(received) < 2 or min(received.values()) < ENOUGH:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        if match := re.search(r"NIC statistics for port (\d)", line):
            port = match[1]
        if match := re.search(r"RX-packets: (\d+) +RX-missed: (\d+)", line):
            received[port] = int(match[1])
            assert match[2] == "0"
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate()
    assert process.returncode == 0, errors
    # What is sent while the ring is full is dropped by testpmd itself: how much depends on time.
    assert "RX-errors: 0" in rest or "RX-dropped: 0 " in rest
    assert "iommufs" not in errors


def test_a_capture_comes_in_whole(testpmd, tmp_path):
    path = tmp_path / "frames.pcap"
    path.write_bytes(capture([frame(60 + i % 1000, seed=i) for i in range(ENOUGH)]))
    process = testpmd(
        "--forward-mode=rxonly", "--auto-start", "--stats-period=1",
        devices=[f"igb,pcap_in={path}"],
    )  # fmt: skip
    received = total = 0
    while received < ENOUGH:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        if match := re.search(r"RX-packets: (\d+) +RX-missed: (\d+)", line):
            # It adds up what it loads, and loading clears nothing (docs/igb.md).
            received, total = int(match[1]) - total, int(match[1])
            assert match[2] == "0"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert (process.returncode, received) == (0, ENOUGH), errors


def test_ports_are_probed_and_closed(testpmd):
    process = testpmd("-i", devices=[PORT, PORT])
    out, errors = process.communicate("show port info 0\nshow port xstats 0\nquit\n")
    assert process.returncode == 0, errors
    assert "Using IOMMU type 1 (Type 1)" in errors
    assert "MAC address: 52:54:00:82:35:76" in out
    assert "Driver name: net_e1000_igb" in out
    assert "iommufs" not in errors


def test_queues_filters_and_statistics(testpmd):
    process = testpmd("-i", "--rxq=4", "--txq=4", devices=[PORT, PORT])
    commands = (
        "show port 0 rss-hash key", "port config 0 rss reta (0,3),(127,1)",
        "vlan set filter on 0", "rx_vlan add 10 0", "mac_addr add 0 02:00:00:00:00:05",
        "mcast_addr add 0 01:00:5e:00:00:05", "set promisc 0 off", "set allmulti 0 on",
        "flow create 0 ingress pattern eth type is 0x0806 / end actions queue index 1 / end",
        "flow create 0 ingress pattern eth / ipv4 proto is 17 / udp dst is 4000"
        " dst mask 0xffff / end actions queue index 2 / end",
        "flow flush 0", "clear port xstats all", "port stop all", "port config mtu 0 9000",
        "port start all", "show port info 0", "show port 0 macs", "port stop all",
        "port reset all", "quit",
    )  # fmt: skip
    out, errors = process.communicate("\n".join(commands) + "\n")
    assert process.returncode == 0, errors
    for line in ("RSS key:", "Flow rule #0 created", "Flow rule #1 created", "MTU: 9000",
                 "Current number of RX queues: 4", "02:00:00:00:00:05"):  # fmt: skip
        assert line.lower() in out.lower(), out
    assert "error" not in re.sub("RX-error|TX-error|error handling", "", out.lower())
    assert "iommufs" not in errors


def test_a_function_of_another_driver_is_none_of_its_ports(testpmd):
    process = testpmd(devices=["edu"])
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "No probed ethernet devices" in out + errors
