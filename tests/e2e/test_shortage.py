"""A server whose descriptors have run out: calls fail with ENOMEM, and it goes on serving."""

import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
LONG = 60
# Enough for the server to start and to have little left.
LIMIT = 121

CLIENT = textwrap.dedent("""
    import ctypes, errno, os, resource, struct, threading

    libc = ctypes.CDLL(None, use_errno=True)
    BIND, IOEVENTFD, IOAS_ALLOC, IOAS_MAP = 0x3B76, 0x3B74, 0x3B81, 0x3B85

    def call(fd, number, shape, *fields):
        data = ctypes.create_string_buffer(struct.pack(shape, *fields))
        failed = libc.ioctl(fd, ctypes.c_ulong(number), data) < 0
        return errno.errorcode[ctypes.get_errno()] if failed else None

    def open_bound():
        device = os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
        assert call(device, BIND, "<IIiIQ", 24, 0, iommu, 0, 0) is None
        return device

    def tie(device, answers, value):
        while not answers or answers[-1] is None:
            answers.append(call(device, IOEVENTFD, "<IIQQiI", 40, 4, 0, value, event, 0))
            value += 1

    iommu, event = os.open("/dev/iommu", os.O_RDWR), os.eventfd(0)
    device = open_bound()
    assert call(iommu, IOAS_ALLOC, "<III", 12, 0, 0) is None
    both = [], []
    threads = [
        threading.Thread(target=tie, args=(device, answers, 1000 * i))
        for i, answers in enumerate(both)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print({answers[-1] for answers in both} == {"ENOMEM"})
    print(call(iommu, IOAS_MAP, "<IIIIQQQ", 40, 6, 2, 0, 4096, 4096, 0) in (None, "ENOMEM"))
    print(len(os.listdir("/sys/bus/pci/devices")) > 0, os.close(device))
    open_bound()
    print(call(iommu, IOAS_MAP, "<IIIIQQQ", 40, 6, 2, 0, 8192, 4096, 0))
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
""")


def run(soft, hard, program):
    return subprocess.run(
        [sys.executable, "-m", "iommufs.cli", "run", "--", sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
        capture_output=True,
        text=True,
        timeout=LONG,
    )


def test_calls_fail_with_enomem_and_the_server_goes_on():
    result = run(LIMIT, LIMIT, CLIENT)
    assert result.stdout.splitlines() == ["True", "True", "True None", "None", str(LIMIT)]
    assert "Traceback" not in result.stderr
    assert result.returncode == 0


def test_the_server_takes_the_hard_limit_and_leaves_the_client_its_own():
    result = run(LIMIT, 1 << 12, CLIENT.replace('== {"ENOMEM"}', '== {"ENOSPC"}'))
    assert result.stdout.splitlines() == ["True", "True", "True None", "None", str(LIMIT)]
    assert result.returncode == 0
    # The kernel wakes us through so many ways at once and no more; the server says so, once.
    assert [line.count("tied more than 500 times") for line in result.stderr.splitlines()] == [1]


def test_a_machine_may_need_more_descriptors_than_a_program_is_given():
    command = "import os, resource; print(len(os.listdir('/dev/vfio/devices')))"
    result = run(20, 1 << 12, command)
    assert (result.stdout, result.stderr) == ("7\n", "")
