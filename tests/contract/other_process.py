"""A second client process: its own memory, an ordinary user if wanted."""

import os
import subprocess
import sys

from iommufs.caller import Caller

# Reports its memory and its file, then does what it is told on stdin, a line at a time, to its end.
PROGRAM = """
import ctypes, mmap, os, resource, sys
uid, euid, memlock, pages = map(int, sys.argv[1:5])
if memlock >= 0:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (memlock, memlock))
if uid:
    os.setresuid(uid, euid, euid)
memory = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(pages):
    memory[page * 4096] = (page + 1) % 256
file = os.memfd_create("other")
os.ftruncate(file, pages * 4096)
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), file, flush=True)
for line in sys.stdin:
    if line.strip() == "exec":
        os.execv(sys.executable, [sys.executable, "-c", os.environ["PROGRAM"], *sys.argv[1:]])
"""


class OtherProcess:
    """A process with `pages` pages at `address`; byte 0 of page n is n + 1, modulo 256.

    file  the number there of a file of as many pages, all zero
    """

    def __init__(
        self, *, uid: int = 0, euid: int | None = None, memlock: int = -1, pages: int = 512
    ) -> None:
        self.uid = uid if euid is None else euid
        numbers = [str(number) for number in (uid, self.uid, memlock, pages)]
        args = [sys.executable, "-c", PROGRAM, *numbers]
        self._process = subprocess.Popen(
            args,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PROGRAM": PROGRAM},
        )
        self.pid = self._process.pid
        self.address, self.file = self._read_numbers()

    def _read_numbers(self) -> tuple[int, int]:
        line = self._process.stdout.readline()
        assert line, "the other process failed"
        address, file = line.split()
        return int(address), int(file)

    def exec(self) -> None:
        """Execute the same program anew: other memory, maybe at another address."""
        self._process.stdin.write("exec\n")
        self._process.stdin.flush()
        self.address, self.file = self._read_numbers()

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def caller(self) -> Caller:
        return Caller(self.pid, self.uid, self.uid)
