"""The clock that strikes models which never come back."""

import subprocess
import sys


def test_the_clock_rests_before_python_forgets_its_handlers():
    program = (
        "import atexit, signal\n"
        "atexit.register(lambda: print(signal.getitimer(signal.ITIMER_REAL)))\n"  # the last one
        "from iommufs.vfio import guard\n"
        "guard._clock.end(guard._clock.begin())\n"
        "assert signal.getitimer(signal.ITIMER_REAL)[1]\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (0, b"(0.0, 0.0)\n"), result.stderr
