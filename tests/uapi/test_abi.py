"""uapi/*.h against the facts of Linux 7.3 on x86-64: abi.json lists them, numbers and names only.

An offset or size in abi.json was read from the debug information of the real headers.
"""

import json
import subprocess
from pathlib import Path

import pytest

from iommufs import uapi
from iommufs._native import ffi

HERE = Path(__file__).parent
UAPI = HERE.parent.parent / "uapi"
ABI = json.loads((HERE / "abi.json").read_text())
NUMBERS = {
    **ABI["constants"],
    **{name: value for enum in ABI["enums"] for name, value in enum["values"].items()},
    **{name: ioctl["number"] for name, ioctl in ABI["ioctls"].items()},
}


@pytest.mark.parametrize("name", ABI["structs"])
def test_layout_of_struct(name):
    facts = ABI["structs"][name]
    sizes = {field: uapi.field_size(name, field) for field in facts["fields"]}
    layout = {f: [uapi.offsetofend(name, f) - size, size] for f, size in sizes.items()}
    assert layout == facts["fields"]
    assert uapi.sizeof(name) == facts["size"]


@pytest.mark.parametrize("name", ABI["structs"])
def test_struct_has_no_other_field(name):
    assert set(_all_fields(ffi.typeof(f"struct {name}"))) == set(ABI["structs"][name]["fields"])


def _all_fields(kind, prefix=""):
    for name, field in kind.fields:
        if name:
            yield prefix + name
        if field.type.kind in ("struct", "union") and "$" in field.type.cname:
            yield from _all_fields(field.type, f"{prefix}{name}." if name else prefix)


def test_constants_enumerators_and_ioctl_numbers():
    assert {name: getattr(uapi, name, None) for name in NUMBERS} == NUMBERS


def test_strings():
    assert {name: getattr(uapi, name, None) for name in ABI["strings"]} == ABI["strings"]


def test_named_enums_hold_their_enumerators():
    named = {enum["enum"]: enum["values"] for enum in ABI["enums"] if enum["enum"]}
    assert {name: ffi.typeof(f"enum {name}").relements for name in named} == named


def test_nothing_is_declared_that_linux_does_not_have():
    first_words = {"IOMMU", "IOMMUFD", "VFIO", "MOCK"}
    ours = {name for name in vars(uapi) if name.lstrip("_").split("_")[0] in first_words}
    assert ours - set(NUMBERS) - set(ABI["strings"]) == set()


@pytest.mark.parametrize("name", [name for name, row in ABI["ioctls"].items() if row["min_size"]])
def test_minimum_size_ends_after_its_last_member(name):
    row = ABI["ioctls"][name]
    assert uapi.offsetofend(row["struct"], row["min_last_member"]) == row["min_size"]


def compile_c(source):
    command = ["cc", "-x", "c", "-std=gnu11", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, f"-I{UAPI}", "-"], input=source, text=True, check=True)


@pytest.mark.parametrize("header", ["iommufd.h", "vfio.h", "iommufd_test.h"])
def test_header_stands_alone(header):
    compile_c(f'#include "{header}"\n')


def test_headers_go_together_and_twice():
    names = ["vfio.h", "iommufd_test.h", "iommufd.h", "vfio.h"]
    compile_c("".join(f'#include "{name}"\n' for name in names))


def test_the_c_compiler_agrees():
    """Once more without cffi, which lays out unnamed inner structures by its own rules."""
    lines = ["#include <stddef.h>", '#include "iommufd_test.h"', '#include "vfio.h"']
    for name, facts in ABI["structs"].items():
        lines.append(f'_Static_assert(sizeof(struct {name}) == {facts["size"]}, "{name}");')
        lines += [
            f'_Static_assert(offsetof(struct {name}, {field}) == {offset}, "{name}.{field}");'
            for field, (offset, _) in facts["fields"].items()
        ]
    lines += [f'_Static_assert({name} == {value}, "{name}");' for name, value in NUMBERS.items()]
    compile_c("\n".join(lines) + "\n")
