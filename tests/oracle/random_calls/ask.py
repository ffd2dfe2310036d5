"""Random calls to everything that there is: one line for each answer.

    ask.py KIND SEED N [--echo]

makes calls for N lines. KIND: devices of the default machine; groups, too; containers, groups as
programs for type1 use them; mock, of the test ioctl; nested, about page tables of all kinds there;
config, configuration space and what hangs on it; features, structures that have tails; sriov,
virtual functions.
The calls follow from the seed and from the answers, so two runs that begin to differ tell at
their first difference what it is about; --echo writes the structures to stderr.
"""

import sys

import config_calls
import container_calls
import device_calls
import feature_calls
import iommufd_calls
import mock_calls
import nested_calls
import sriov_calls
from world import World

KINDS = {
    "devices": iommufd_calls.CALLS | device_calls.CALLS,
    "groups": iommufd_calls.CALLS | device_calls.CALLS | device_calls.GROUP_CALLS,
    "config": config_calls.CALLS,
    "features": feature_calls.CALLS,
    "sriov": sriov_calls.CALLS,
    "containers": container_calls.CALLS,
    "mock": iommufd_calls.CALLS | mock_calls.CALLS,
    "nested": nested_calls.CALLS,
}
# The mock's page tables begin at some IOVA; and where a thing is made of many others, more care
# is taken that it can be.
WORLDS = {
    "mock": {"first_iova": mock_calls.APERTURE},
    "nested": {"first_iova": mock_calls.APERTURE, "care": 5},
}


def main():
    kind, seed, n_lines, *echo = sys.argv[1:]
    bag = [call for call, weight in KINDS[kind].items() for _ in range(weight)]
    world = World(int(seed), bool(echo), **WORLDS.get(kind, {}))
    iommufd_calls.open_iommufd(world)
    iommufd_calls.open_iommufd(world)
    while world.n_lines < int(n_lines):
        world.random.of(*bag)(world)


main()
