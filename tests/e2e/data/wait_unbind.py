"""Writers that wait for a device which this process has open: run by test_bus.py."""

import contextlib
import os
import signal
import subprocess
import sys

EDU, NVME = "0000:00:06.0", "0000:01:00.0"
VFIO = "/sys/bus/pci/drivers/vfio-pci"
LONG = 30

cdev = os.open("/dev/vfio/devices/vfio0", os.O_RDWR)


def is_gone(path):
    with contextlib.suppress(FileNotFoundError):
        os.stat(path)
        return False
    return True


def start_unbinding(bdf):
    program = f"import os; os.write(os.open('{VFIO}/unbind', os.O_WRONLY), b'{bdf}')"
    return subprocess.Popen([sys.executable, "-c", program])


waiting = start_unbinding(EDU)
while not is_gone("/dev/vfio/devices/vfio0"):
    pass  # each look is a request: the other one is answered in between
print("signal that it survives:", waiting.send_signal(signal.SIGCONT), waiting.poll())
print("another device:", start_unbinding(NVME).wait(LONG))
waiting.send_signal(signal.SIGKILL)
print("killed:", waiting.wait(LONG))
os.close(cdev)
with open(f"{VFIO}/bind", "w") as file:
    file.write(EDU)  # waits until the unbinding is over
print("bound again:", os.listdir(f"/sys/bus/pci/devices/{EDU}/vfio-dev"))
alone = subprocess.Popen(
    [
        *(sys.executable, "-c"),
        "import os; fd = os.open('/dev/vfio/devices/vfio0', os.O_RDWR);"
        f"os.write(os.open('{VFIO}/unbind', os.O_WRONLY), b'{EDU}')",
    ]
)
while not is_gone("/dev/vfio/devices/vfio0"):
    pass
alone.kill()
print("who waits for itself can be killed:", alone.wait(LONG))
