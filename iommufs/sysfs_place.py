"""Where functions are on the machine, as /sys tells it: near all of its CPUs, on no NUMA node."""

from __future__ import annotations

import errno
import os

from iommufs.errors import UapiError
from iommufs.fuse.nodes import Node
from iommufs.sysfs_attrs import number, text

NODES = "/sys/devices/system/node"  # there if the machine's kernel knows NUMA
NO_NODE = -1
INT_MAX = 0x7FFFFFFF


def whereabouts() -> dict[str, Node]:
    """The attributes of one function."""
    cpu_list, cpu_mask = _local_cpus()
    nodes: dict[str, Node] = {"local_cpulist": text(cpu_list), "local_cpus": text(cpu_mask)}
    if os.path.isdir(NODES):
        nodes["numa_node"] = _numa_node()
    return nodes


def _local_cpus() -> tuple[str, str]:
    """All CPUs: as list and as mask."""
    n = os.cpu_count() or 1
    mask = f"{(1 << n) - 1:x}"
    groups = [mask[max(0, end - 8) : end] for end in range(len(mask), 0, -8)]
    return f"0-{n - 1}" if n > 1 else "0", ",".join(reversed(groups))


def _numa_node() -> Node:
    """EINVAL: no such node. Source: numa_node_store()"""
    kept = [NO_NODE]

    def store(data: bytes) -> None:
        line = data.split(b"\0")[0].removesuffix(b"\n")
        wanted = NO_NODE if line == b"-1" else number(data, INT_MAX)
        if wanted != NO_NODE and not os.path.isdir(f"{NODES}/node{wanted}"):
            raise UapiError(errno.EINVAL, f"no node {wanted}")
        kept[0] = wanted

    return text(lambda: str(kept[0]), 0o644, store)
