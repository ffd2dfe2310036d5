"""Linux in a guest of QEMU, with its own drivers, on devices of ours that are passed through."""

import hashlib
import random

import pytest

from tests.clients.guest import initramfs

pytestmark = pytest.mark.mount

SLOW = 300  # seconds; QEMU without KVM, perhaps on a busy machine


@pytest.fixture
def boot(start_qemu, debian, tmp_path):
    """Runs a script in a guest; returns what it printed."""

    def boot(*devices, machine, modules=(), script):
        (tmp_path / "initramfs").write_bytes(initramfs(debian.root, modules, script))
        serial = tmp_path / "serial"
        command_line = "console=ttyS0 quiet panic=-1"
        qemu = start_qemu(
            *devices,
            has_guest=True,
            options=[word for device in machine for word in ("--device", device)],
            arguments=[
                *("-kernel", str(debian.kernel), "-initrd", str(tmp_path / "initramfs")),
                *("-append", command_line, "-serial", f"file:{serial}", "-no-reboot"),
            ],
        )
        status = qemu.process.wait(SLOW)
        said = serial.read_text(errors="replace").replace("\r", "")
        assert status == 0, qemu.messages()
        assert "guest: status 0" in said, said + qemu.messages()
        return said

    return boot


def test_registers_of_edu(boot):
    said = boot(
        "0000:00:01.0",
        machine=["edu"],
        script="""
        for device in /sys/bus/pci/devices/*; do
            grep -q 0x1234 $device/vendor || continue
            echo 1 >$device/enable
            read start last flags <$device/resource
            echo "edu: $((start == 0)) $((last - start)) $(devmem $start 32)"
            devmem $((start + 4)) 32 0x12345678
            echo "alive: $(devmem $((start + 4)) 32)"
        done
        """,
    )
    assert "edu: 0 1048575 0x010000ED\n" in said
    assert "alive: 0xEDCBA987\n" in said


MIB = 1 << 20


def test_disk_on_nvme_keeps_what_the_guest_writes(boot, tmp_path):
    """The guest reads what the file has, the file has what the guest wrote; checksums agree."""
    backing = tmp_path / "disk"
    seed = random.randrange(1 << 32)
    print("seed", seed)
    before = random.Random(seed).randbytes(16 * MIB)
    backing.write_bytes(before)
    said = boot(
        "0000:00:01.0",
        machine=[f'nvme,path={backing},reset_methods=["flr"]'],
        modules=["nvme"],
        script="""
        disk=/dev/nvme0n1
        for i in $(seq 300); do [ -b $disk ] && break; sleep 0.1; done
        echo "size: $(cat /sys/block/nvme0n1/size)"
        echo "before: $(sha256sum <$disk)"
        dd if=/dev/urandom of=/tmp/new bs=1M count=8 2>/dev/null
        dd if=/tmp/new of=$disk bs=64k seek=64 conv=fsync 2>/dev/null
        dd if=/tmp/new of=$disk bs=512 skip=7 seek=3 count=9 conv=notrunc,fsync 2>/dev/null
        sync; echo 3 >/proc/sys/vm/drop_caches
        echo "new: $(sha256sum </tmp/new)"
        echo "written: $(dd if=$disk bs=64k skip=64 count=128 2>/dev/null | sha256sum)"
        echo "after: $(sha256sum <$disk)"
        grep nvme /proc/interrupts
        """,
    )
    sums = dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)
    assert int(sums["size"]) == 16 * MIB // 512
    assert sums["before"].split()[0] == hashlib.sha256(before).hexdigest()
    assert sums["written"] == sums["new"]
    after = backing.read_bytes()
    assert sums["after"].split()[0] == hashlib.sha256(after).hexdigest()
    assert hashlib.sha256(after[4 * MIB : 12 * MIB]).hexdigest() == sums["new"].split()[0]
    assert after[12 * MIB :] == before[12 * MIB :]


@pytest.mark.parametrize(("more", "options"), [("", ",trap=true"), (",x-no-mmap=on", "")])
def test_two_ports_of_igb_ping_each_other(boot, more, options):
    """The kernel's igb driver at both ends: DMA, MSI-X, an interface in a namespace each.

    Through a mapping of all registers it would lose interrupts (docs/igb.md).
    """
    said = boot(
        f"0000:00:01.0{more}", f"0000:00:02.0{more}",
        machine=[f'igb,wire=a,reset_methods=["flr"]{options}'] * 2,
        modules=["igb"],
        script="""
        unshare -n sh -c 'echo $$ >/tmp/other; exec sleep 1000' &
        while [ ! -s /tmp/other ]; do sleep 0.1; done
        ip link set eth1 netns $(cat /tmp/other)
        there() { nsenter -t $(cat /tmp/other) -n "$@"; }
        ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up
        there ip addr add 10.0.0.2/24 dev eth1; there ip link set eth1 up
        while [ "$(cat /sys/class/net/eth0/carrier 2>&1)" != 1 ]; do sleep 0.1; done
        ping -c 1 -W 60 10.0.0.2
        ping -c 20 -i 0.1 -s 1400 10.0.0.2
        grep eth0 /proc/interrupts
        """,
    )  # fmt: skip
    assert "20 packets transmitted, 20 packets received, 0% packet loss" in said
