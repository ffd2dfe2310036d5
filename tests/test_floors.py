"""The house is built in floors: a room imports only rooms below it.

A room is a module or a package right under iommufs. Within a floor a room may import those to its
left.
"""

import ast
import graphlib
import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

FLOORS = [
    ["errors", "limits", "logs", "_native", "uapi"],
    ["fast", "baton", "jobs", "caller", "ucmd", "files", "syscalls", "user_namespace"],
    ["iommufd"],
    ["vfio"],
    ["devices", "models", "iommu"],
    ["tables", "dispatch"],
    [
        "fuse",
        "pci_image",
        "lspci",
        "topology",
        "topology_mediated",
        "topology_keys",
        "topology_file",
        "device_options",
        "pci_bus",
        "pci_ids",
        "pci_sriov",
        "vfio_pci",
        "sysfs_attrs",
        "sysfs_place",
        "sysfs_resource",
        "sysfs_registers",
        "sysfs_pci",
        "sysfs_mdev",
        "sysfs",
        "machine",
    ],
    [
        "standin",
        "fusermount",
        "server",
        "unasked",
        "looks",
        "mapped",
        "fdreturn",
        "seccomp",
        "listing",
    ],
    [
        "notify",
        "composer",
        "namespace",
        "machine_links",
        "connect",
        "launcher",
        "run_server",
        "check",
        "cli",
    ],
]
PLACE = {room: i for i, room in enumerate(chain(["iommufs"], *FLOORS))}

# Rooms that see less than the floors allow, themselves apart.
ONLY = {
    "devices": {"iommufs.vfio.model"},
    "iommu": {"iommufs.iommufd.iommu", "iommufs.errors", "iommufs.limits", "iommufs.uapi"},
}

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "iommufs").rglob("*.py"))
}


def imported(module):
    """The modules that a module names in its imports, wherever they stand in it."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute here"
            yield from (_imported_module(node.module, alias.name) for alias in node.names)


def imports_of(module):
    """Those of ours."""
    return (name for name in imported(module) if name.split(".")[0] == "iommufs")


def _imported_module(base, name):
    full = f"{base}.{name}"
    return full if full in MODULES or full == "iommufs._native" else base


def room_of(module):
    """The room a module belongs to; iommufs itself is the lowest one."""
    return module.split(".")[min(1, module.count("."))]


@pytest.mark.parametrize("module", MODULES)
def test_module_has_a_floor(module):
    assert room_of(module) in PLACE


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    room = room_of(module)
    others = {name for name in imports_of(module) if room_of(name) != room}
    assert {name for name in others if PLACE[room_of(name)] >= PLACE[room]} == set()
    assert room not in ONLY or others <= ONLY[room]


def test_what_others_ship_is_declared():
    """Else it works wherever it happens to be installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    known = {"iommufs", *sys.stdlib_module_names, *declared}
    found = {name.split(".")[0] for module in MODULES for name in imported(module)}
    assert found - known == set()


def test_no_circle_of_imports():
    graph = {module: {n for n in imports_of(module) if n != module} for module in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())
