"""Builds iommufs._native, the C half of iommufs, with cffi in API mode.

The declarations that Python sees are the text of uapi/*.h and native/iommufs.h themselves, with
comments and preprocessor lines taken out and every constant left to the compiler, so that no
struct and no number is typed twice. Run as a program it builds the extension in place.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
HEADERS = [
    ROOT / "uapi" / "iommufd.h",
    ROOT / "uapi" / "vfio.h",
    ROOT / "uapi" / "iommufd_test.h",
    NATIVE / "iommufs.h",
]
MODULE = "iommufs._native"
TARGET = ROOT / "iommufs" / "_native.abi3.so"
BUILD = "build"

# What <linux/types.h> says, for cffi, which reads no included files.
LINUX_TYPES = """
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef unsigned long long __aligned_u64;
typedef unsigned long long __le64;
"""

COMPILE_ARGS = [
    *("-std=gnu11", "-O2", "-g", "-fvisibility=hidden", "-pthread"),
    *("-Wall", "-Wextra", "-Werror"),
    # cffi's generated code and Python's headers do not care about these two.
    *("-Wno-unused-parameter", "-Wno-missing-field-initializers"),
]


def cdef_of_header(text: str) -> str:
    """The declarations of a header as cffi takes them: constants become NAME ... ."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    text = text.replace("\\\n", " ")
    defines = "".join(
        f"static const char *const {name};\n" if value.startswith('"') else f"#define {name} ...\n"
        for name, value in re.findall(r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+(\S.*)$", text, re.M)
    )
    text = re.sub(r"^[ \t]*#.*$", "", text, flags=re.M)
    return defines + re.sub(r"\benum(\s+\w+)?\s*\{(.*?)\}", _open_enum, text, flags=re.DOTALL)


def _open_enum(match: re.Match) -> str:
    name, body = match[1] or "", match[2]
    enumerators = [item.split("=")[0].strip() for item in body.split(",")]
    return f"enum{name} {{ {', '.join(filter(None, enumerators))}, ... }}"


def functions_of(cdef: str) -> list[str]:
    """The names of the functions that a cdef declares."""
    return re.findall(r"^[a-z][\w \t*]*?\b(\w+)\s*\([^;{}]*\);", cdef, re.M)


def sources() -> list[Path]:
    return [path for path in sorted(NATIVE.glob("*.c")) if not path.stem.endswith("_test")]


def defined_functions(names: list[str]) -> set[str]:
    """Which of the functions some native/*.c defines."""
    code = "\n".join(path.read_text() for path in sources())
    return {
        name
        for name in names
        if re.search(rf"^[a-z][\w \t*]*\b{name}\s*\([^;{{}}]*\)\s*\{{", code, re.M)
    }


def take_out_functions(cdef: str, names: set[str]) -> tuple[str, str]:
    """The cdef without these functions, and C definitions of them that abort if called."""
    stand_ins = "#include <stdlib.h>\n"
    for name in sorted(names):
        found = re.search(rf"^[a-z][\w \t*]*?\b{name}\s*\([^;{{}}]*\);", cdef, re.M)
        cdef = cdef[: found.start()] + cdef[found.end() :]
        stand_ins += f"{found[0][:-1]} {{ abort(); }}\n"
    return cdef, stand_ins


def pkg_config(*args: str) -> list[str]:
    return shlex.split(
        subprocess.run(["pkg-config", *args], check=True, stdout=subprocess.PIPE, text=True).stdout
    )


def make_ffi() -> FFI:
    """The builder; setup.py hands it to setuptools."""
    cdef = "".join(cdef_of_header(header.read_text()) for header in HEADERS)
    names = functions_of(cdef)
    missing = set(names) - defined_functions(names)
    if missing:
        print(f"{MODULE}: declared, but not written yet: {', '.join(sorted(missing))}")
    cdef, stand_ins = take_out_functions(cdef, missing)
    ffi = FFI()
    ffi.cdef(LINUX_TYPES + cdef)
    ffi.set_source(
        MODULE,
        "".join(f'#include "{header.name}"\n' for header in HEADERS) + stand_ins,
        sources=[str(path.relative_to(ROOT)) for path in sources()],
        depends=[str(path.relative_to(ROOT)) for path in [*HEADERS, *NATIVE.glob("*.h")]],
        include_dirs=["uapi", "native"],
        extra_compile_args=[*COMPILE_ARGS, *pkg_config("--cflags", "fuse3")],
        extra_link_args=["-pthread", "-Wl,--as-needed", *pkg_config("--libs", "fuse3"), "-ldl"],
    )
    return ffi


def is_up_to_date() -> bool:
    inputs = [Path(__file__), ROOT / "setup.py", *NATIVE.glob("*.[ch]"), *HEADERS]
    newest = max(path.stat().st_mtime for path in inputs)
    return TARGET.exists() and TARGET.stat().st_mtime >= newest


def build_in_place() -> None:
    if is_up_to_date():
        print(f"{MODULE}: up to date")
        return
    start = time.time()
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(
        [*command, "--build-temp", BUILD, "--build-lib", f"{BUILD}/lib"], cwd=ROOT, check=True
    )
    os.utime(TARGET, (start, start))  # a source that changed meanwhile is newer
    print(f"{MODULE}: built {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    build_in_place()
