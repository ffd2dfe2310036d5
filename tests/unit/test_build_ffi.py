"""How headers become declarations for cffi, and what the extension lets out."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

from iommufs import _native

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def build_ffi():
    path = ROOT / "native" / "build_ffi.py"
    spec = importlib.util.spec_from_file_location("build_ffi", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def squeezed(cdef):
    return " ".join(cdef.split())


@pytest.mark.parametrize(
    ("header", "cdef"),
    [
        ("#ifndef A_H\n#define A_H\n#include <x.h>\n#endif\n", ""),
        ("#define NR (1 << 3) /* bits */\n", "#define NR ..."),
        ("#define MASK \\\n  (A | B)\n", "#define MASK ..."),
        ('#define NAME "text"\n', "static const char *const NAME;"),
        ("#define CALL(x) (x)\n", ""),
        ("enum kind { A = 1 << 0, B, };\n", "enum kind { A, B, ... };"),
        ("enum { A = 0x80, B = A };", "enum { A, B, ... };"),
        ("struct s { int a; /* why; */ };", "struct s { int a; };"),
    ],
)
def test_cdef_of_header(build_ffi, header, cdef):
    assert squeezed(build_ffi.cdef_of_header(header)) == cdef


def test_only_what_others_look_for_is_exported():
    """Three functions of libfuse, so that pyfuse3 binds to ours, and what Python loads."""
    table = subprocess.run(
        ["nm", "--dynamic", "--defined-only", _native.__file__],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    names = {line.split()[-1] for line in table.splitlines()}
    ours = {"fuse_session_mount", "fuse_session_fd", "fuse_session_receive_buf"}
    assert names == {"PyInit__native", *ours}
