"""Builds iommufs._native, the C half of iommufs, with cffi in API mode.

The declarations that Python sees are the text of uapi/*.h, native/iommufs.h and native/serve.h
themselves, with comments and preprocessor lines taken out and every constant left to the compiler,
so that no struct and no number is typed twice. Run as a program it builds the extension in place.
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
    NATIVE / "serve.h",
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

# The steps of visits (serve.h), for Python to define.
CALLBACKS = """
extern "Python" {
  struct iofs_job *iofs_begin_visit(const struct iofs_ioctl *);
  struct iofs_job *iofs_go_on_with_visit(uint64_t);
}
"""

COMPILE_ARGS = [
    *("-std=gnu11", "-O2", "-g", "-fvisibility=hidden", "-pthread"),
    "-UNDEBUG",  # Python's own flags take assertions out
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


def sources() -> list[Path]:
    return [path for path in sorted(NATIVE.glob("*.c")) if not path.stem.endswith("_test")]


def pkg_config(*args: str) -> list[str]:
    return shlex.split(
        subprocess.run(["pkg-config", *args], check=True, stdout=subprocess.PIPE, text=True).stdout
    )


def make_ffi() -> FFI:
    """The builder; setup.py hands it to setuptools."""
    ffi = FFI()
    headers = "".join(cdef_of_header(header.read_text()) for header in HEADERS)
    ffi.cdef(LINUX_TYPES + headers + CALLBACKS)
    ffi.set_source(
        MODULE,
        "".join(f'#include "{header.name}"\n' for header in HEADERS),
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
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    # A function that is declared and defined nowhere shows only when the module is loaded.
    load = [sys.executable, "-c", f"import {MODULE}"]
    for command in ([*build, "--build-temp", BUILD, "--build-lib", f"{BUILD}/lib"], load):
        if subprocess.run(command, cwd=ROOT).returncode:
            TARGET.unlink(missing_ok=True)
            sys.exit(f"{MODULE}: not built, for the reason above")
    os.utime(TARGET, (start, start))  # a source that changed meanwhile is newer
    print(f"{MODULE}: built {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    build_in_place()
