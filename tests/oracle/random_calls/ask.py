"""Random calls to everything that there is: one line for each answer.

    ask.py devices|groups|mock SEED N [--echo]

makes calls for N lines: to the devices of the default machine, to their groups too, or of the test
ioctl. The calls follow from the seed and from the answers, so two runs that begin to differ tell at
their first difference what it is about; --echo writes the structures to stderr.
"""

import sys

import device_calls
import iommufd_calls
import mock_calls
from world import World

KINDS = {
    "devices": device_calls.CALLS,
    "groups": device_calls.CALLS | device_calls.GROUP_CALLS,
    "mock": mock_calls.CALLS,
}


def main():
    kind, seed, n_lines, *echo = sys.argv[1:]
    calls = iommufd_calls.CALLS | KINDS[kind]
    bag = [call for call, weight in calls.items() for _ in range(weight)]
    world = World(int(seed), bool(echo))
    iommufd_calls.open_iommufd(world)
    iommufd_calls.open_iommufd(world)
    while world.n_lines < int(n_lines):
        world.random.of(*bag)(world)


main()
