"""A machine of QEMU (TCG) with devices of ours, its monitor (QMP) and its hands (qtest)."""

import contextlib
import json
import socket
import subprocess

SECONDS = 90  # after which something hangs
CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
COMMAND = 0x04
MEMORY_AND_MASTER = 0x06
# What SeaBIOS says when it has set up all devices and finds nothing to start.
FIRMWARE_IS_DONE = "No bootable device."

# Opens the devices, then becomes QEMU.
OPEN = """
n=$1; shift
while [ $n -gt 0 ]; do eval "exec $1<>$2"; shift 2; n=$((n-1)); done
exec "$@"
"""
FIRST_FD = 60


class Qemu:
    """devices: paths of cdevs, opened for QEMU, or addresses, which it looks for itself.

    has_guest  a guest of its own runs in it; else it has hands, and tells of its firmware
    """

    def __init__(self, command, devices, arguments, directory, environment, has_guest=False):
        self.log = (directory / "qemu.log").open("w+")
        ours, theirs = zip(*(socket.socketpair() for _ in range(3)), strict=True)
        qmp, qtest, firmware = (end.fileno() for end in theirs)
        separator = command.index("--") + 1
        opened = [(str(FIRST_FD), "/dev/iommu")] if devices else []
        machine = [
            *("-machine", "q35", "-accel", "tcg", "-m", "256M", "-nodefaults", "-display", "none"),
            *("-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"),
        ]
        if not has_guest:
            machine += [
                *("-chardev", f"socket,id=qtest,fd={qtest}", "-qtest", "chardev:qtest"),
                *("-qtest-log", "none", "-chardev", f"socket,id=firmware,fd={firmware}"),
                *("-device", "isa-debugcon,iobase=0x402,chardev=firmware"),
            ]
        if devices:
            machine += ["-object", f"iommufd,id=iommufd0,fd={FIRST_FD}"]
        for i, device in enumerate(devices):
            name, _, properties = device.partition(",")
            where = f"host={name}"
            if name.startswith("/"):
                where = f"fd={FIRST_FD + 1 + i}"
                opened.append((str(FIRST_FD + 1 + i), name))
            option = f"vfio-pci,id=device{i},iommufd=iommufd0,{where}"
            machine += ["-device", f"{option},{properties}" if properties else option]
        opener = ["bash", "-c", OPEN, "open", str(len(opened)), *(w for one in opened for w in one)]
        self.process = subprocess.Popen(
            [*command[:separator], *opener, *command[separator:], *machine, *arguments],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=environment,
            pass_fds=[qmp, qtest, firmware],
        )  # fmt: skip
        for end in theirs:
            end.close()
        for end in ours:
            end.settimeout(SECONDS)
        self._sockets = ours
        self._qmp, self._qtest, self._firmware = (end.makefile("rw") for end in ours)

    def wait_for_monitor(self):
        self._line(self._qmp)
        self.monitor("qmp_capabilities")

    def monitor(self, command, **arguments):
        """The answer of a QMP command; events on the way are dropped."""
        with contextlib.suppress(ConnectionError):  # it has ended, and there is no answer either
            question = json.dumps({"execute": command, "arguments": arguments})
            print(question, file=self._qmp, flush=True)
        while True:
            answer = json.loads(self._line(self._qmp))
            if "event" not in answer:
                assert "return" in answer, answer
                return answer["return"]

    def wait_for_firmware(self):
        """Until SeaBIOS has given the devices their addresses."""
        while FIRMWARE_IS_DONE not in self._line(self._firmware):
            pass

    def _line(self, file):
        try:
            line = file.readline()
        except ConnectionResetError:
            line = ""
        if not line:
            self.process.wait(SECONDS)
            raise AssertionError(f"QEMU has ended: {self.messages()}")
        return line

    def messages(self):
        """What QEMU and iommufs have said so far."""
        self.log.flush()
        with open(self.log.name) as log:
            return log.read()

    def function(self, name):
        """What the guest's bus has of a device: dict as in query-pci."""
        functions = self.monitor("query-pci")[0]["devices"]
        return next(function for function in functions if function["qdev_id"] == name)

    # -- what a processor would do ----------------------------------------------------------------

    def _do(self, *words):
        text = " ".join(hex(word) if isinstance(word, int) else word for word in words)
        print(text, file=self._qtest, flush=True)
        status = "IRQ"  # which comes on its own
        while status == "IRQ":
            status, *values = self._line(self._qtest).split()
        assert status == "OK", f"{text}: {status} {values}"
        return values

    def load(self, address):
        return int(self._do("readl", address)[0], 16)

    def store(self, address, value):
        self._do("writel", address, value)

    def store8(self, address, value):
        self._do("writeq", address, value)

    def load_bytes(self, address, length):
        return bytes.fromhex(self._do("read", address, length)[0].removeprefix("0x"))

    def store_bytes(self, address, data):
        self._do("write", address, len(data), "0x" + data.hex())

    def write_config(self, slot, offset, value):
        """16 bits of a function in slot `slot`, function 0."""
        self._do("outl", CONFIG_ADDRESS, 0x80000000 | slot << 11 | offset & ~3)
        self._do("outw", CONFIG_DATA + (offset & 2), value)

    def switch_on(self, slot):
        """Let a function answer and do DMA, as its driver would."""
        self.write_config(slot, COMMAND, MEMORY_AND_MASTER)

    # -- the end ----------------------------------------------------------------------------------

    def quit(self):
        """The exit status."""
        self.monitor("quit")
        return self.process.wait(SECONDS)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(SECONDS)
        for end in (*self._sockets, self._qmp, self._qtest, self._firmware):
            with contextlib.suppress(BrokenPipeError):
                end.close()
        self.log.close()
