"""The structures and numbers of uapi/*.h, as the C compiler understood them.

Every constant is an attribute here under its C name (`uapi.IOMMU_IOAS_MAP`), strings as str.
Structures are named without `struct`.
"""

import functools
from typing import Any

from iommufs._native import ffi, lib

_PREFIXES = ("IOMMU_", "IOMMUFD_", "VFIO_", "__VFIO_", "MOCK_")


def _constants() -> dict[str, int | str]:
    names = [name for name in dir(lib) if name.startswith(_PREFIXES)]
    values = {name: getattr(lib, name) for name in names}
    return {
        name: value if isinstance(value, int) else ffi.string(value).decode()
        for name, value in values.items()
    }


globals().update(_constants())


def new(struct_name: str, **fields: Any) -> Any:
    """A structure of zeros, but for the given fields, as a cffi pointer that owns it.

    A flexible array takes a list, or a number of elements.
    """
    return ffi.new(f"struct {struct_name} *", fields)


def pointer_to(struct_name: str) -> Any:
    """The cffi type of a pointer to a structure."""
    return ffi.typeof(f"struct {struct_name} *")


def sizeof(struct_name: str) -> int:
    """Bytes, padding at the end included, a flexible array not."""
    return ffi.sizeof(f"struct {struct_name}")


def offsetofend(struct_name: str, field: str) -> int:
    """The offset of the first byte after a field; `outer.inner` names a field of a field."""
    kind = ffi.typeof(f"struct {struct_name}")
    return ffi.offsetof(kind, *field.split(".")) + field_size(struct_name, field)


def offsetof(struct_name: str, field: str) -> int:
    return ffi.offsetof(f"struct {struct_name}", field)


def field_size(struct_name: str, field: str) -> int:
    """Bytes; 0 for a flexible array."""
    kind = ffi.typeof(f"struct {struct_name}")
    for name in field.split("."):
        kind = _fields(kind)[name]
    return 0 if kind.kind == "array" and kind.length is None else ffi.sizeof(kind)


@functools.cache
def field_range(kind: Any, name: str) -> tuple[int, int]:
    """Start and end, in bytes, of a field of a structure, given by its cffi type."""
    start = ffi.offsetof(kind, name)
    return start, start + ffi.sizeof(_fields(kind)[name])


def _fields(kind: Any) -> dict[str, Any]:
    """Name to type, the members of unnamed unions among them."""
    found = {}
    for name, field in kind.fields:
        found.update({name: field.type} if name else _fields(field.type))
    return found
