"""Clients of groups, several at once with threads of their own, killed anywhere; argv: seed.

Prints which groups can be used in the end: all, if nothing is left of any client.
"""

import os
import random
import signal
import sys
import threading
import time

import ask

N_CLIENTS = 16
LONG = 30  # seconds after which something is left for good


def use_device(device, group, rng):
    """What one thread of a client does: descriptors come and go, the container too."""
    held = []
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    while True:
        place = bytearray(4096)
        at = ask.ctypes.addressof(ask.ctypes.c_char.from_buffer(place))
        action = rng.randrange(6)
        if action < 3:
            place[: len(device)] = device.encode()
            fd = ask.ioctl(group, ask.GET_DEVICE_FD, at)
            if isinstance(fd, int):
                held.append(fd)
        elif action == 3 and held:
            os.close(held.pop(rng.randrange(len(held))))
        elif action == 4 and held:
            ask.mmap.mmap(held[0], 4096).close()
            assert len(os.pread(held[0], 4, ask.CONFIG)) == 4
        elif action == 5:
            place[:4] = container.to_bytes(4, "little")
            ask.ioctl(group, ask.UNSET_CONTAINER)
            ask.ioctl(group, ask.SET_CONTAINER, at)
        while len(held) > 8:
            os.close(held.pop())


def client(seed):
    rng = random.Random(seed)
    device = rng.choice(list(ask.GROUPS))
    group = ask.group(device)
    while not isinstance(group, int):
        group = ask.group(device)
    siblings = [other for other, number in ask.GROUPS.items() if number == ask.GROUPS[device]]
    for sibling in siblings * 2:
        thread_rng = random.Random(rng.random())
        threading.Thread(target=use_device, args=(sibling, group, thread_rng), daemon=True).start()
    signal.pause()


def start(seed):
    child = os.fork()
    if not child:
        try:
            client(seed)
        finally:
            os._exit(1)
    return child


def usable(device):
    """Whether a group is free; what was killed is released a little later."""
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        group = ask.group(device)
        if isinstance(group, int):
            free = ask.status(group) == "0 flags 1"
            ask.close(group)
            if free:
                return True
        time.sleep(0.01)
    return False


def main():
    rng = random.Random(int(sys.argv[1]))
    for _ in range(N_CLIENTS // 2):
        children = [start(rng.getrandbits(32)) for _ in range(2)]
        time.sleep(rng.random() * 0.2)
        for child in children:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert status == signal.SIGKILL, status
    print([ask.GROUPS[device] for device in ask.GROUPS if usable(device)])


main()
