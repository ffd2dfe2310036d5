"""The benchmark: each figure beside a floor or a peer that was measured in the same run.

    python bench/run.py [--json FILE] [maps] [areas] [ioctls]

prints a table and writes FILE, build/bench.json if there is none. Figures are medians of rounds in
which the two took turns; the ratio is the median of the rounds' ratios. docs/benchmarks.md tells
how to read it.
"""

import argparse
import contextlib
import functools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCH, NATIVE = ROOT / "bench", ROOT / "native"
BUILD = ROOT / "build" / "bench"

FLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-g", "-pthread"]
INCLUDES = [f"-I{ROOT / 'uapi'}", f"-I{NATIVE}", f"-I{BENCH}"]


def pkg_config(*arguments: str) -> list[str]:
    return shlex.split(subprocess.check_output(["pkg-config", *arguments, "fuse3"], text=True))


def build(name: str, *more: str | Path) -> Path:
    """A program of this directory; the compiler's flags are those of the extension."""
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / name
    command = ["cc", *FLAGS, *INCLUDES, "-o", program, BENCH / f"{name}.c", *more]
    subprocess.run(command, check=True)
    return program


@functools.cache
def core() -> Path:
    """The native sources as one object file."""
    BUILD.mkdir(parents=True, exist_ok=True)
    sources = [path for path in sorted(NATIVE.glob("*.c")) if not path.stem.endswith("_test")]
    made = BUILD / "core.o"
    command = ["cc", *FLAGS, *INCLUDES, "-r", "-o", made, *sources, *pkg_config("--cflags")]
    subprocess.run(command, check=True)
    return made


def build_with_core(name: str, *more: str | Path) -> Path:
    return build(name, core(), *more, *pkg_config("--libs"), "-ldl")


def run_areas() -> list[dict]:
    import python_trees  # `make bench` installs what it measures

    peer = BUILD / "stdmap.o"
    BUILD.mkdir(parents=True, exist_ok=True)
    subprocess.run(["c++", "-std=c++17", "-O2", "-c", "-o", peer, BENCH / "stdmap.cc"], check=True)
    records = records_of(build_with_core("areas", peer, "-lstdc++"))
    ours = {record["figure"]: record for record in records if not record["peer_name"]}
    records = [record for record in records if record["peer_name"]]
    for operation, peers in python_trees.measure(len(records[0]["ours"])).items():
        record = ours[f"tree of 1e5: {operation}, random order"]
        records += [
            record | {"peer_name": f"{name} of 1e5", "peer": series}
            for name, series in peers.items()
        ]
    return records


def records_of(*command: str | Path) -> list[dict]:
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in output.splitlines()]


@contextlib.contextmanager
def serving(*command: str | Path) -> Iterator[None]:
    """A server that says a line when it answers, and ends on SIGTERM."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as server:
        try:
            if not server.stdout.readline():
                sys.exit(f"bench: {command[0]} does not serve")
            yield
        finally:
            server.terminate()


def run_ioctls() -> list[dict]:
    client = build("ioctls")
    floor = build("floor", *pkg_config("--cflags", "--libs"))
    with contextlib.ExitStack() as stack:
        tree, file = (stack.enter_context(tempfile.TemporaryDirectory()) for _ in range(2))
        stack.enter_context(serving(sys.executable, "-m", "iommufs.cli", "mount", tree))
        stack.enter_context(serving(floor, file))
        return records_of(client, tree, os.path.join(file, "file"))


def run_nvme() -> list[dict]:
    run = [sys.executable, "-m", "iommufs.cli", "run", "--device", "nvme,size=64M"]
    return records_of(*run, "--", build("nvme"))


PARTS = {
    "maps": lambda: records_of(build_with_core("maps")),
    "areas": run_areas,
    "ioctls": run_ioctls,
    "nvme": run_nvme,
}


def summary(record: dict) -> dict:
    """A record with its medians."""
    ratios = [ours / peer for ours, peer in zip(record["ours"], record["peer"], strict=True)]
    return record | {
        "ours_ns": statistics.median(record["ours"]),
        "peer_ns": statistics.median(record["peer"]),
        "ratio": statistics.median(ratios),
    }


def duration(ns: float) -> str:
    for unit, size in (("ns", 1), ("µs", 1e3), ("ms", 1e6)):
        if ns < 1000 * size or unit == "ms":
            return f"{ns / size:.3g} {unit}" if ns < 100 * size else f"{ns / size:.0f} {unit}"
    raise AssertionError


def table(records: list[dict]) -> str:
    rows = [["figure", "here", "peer", "", "ratio", "counted"]]
    for r in records:
        counted = ", ".join(
            f"{value} {name.replace('_', ' ')}" for name, value in r["facts"].items()
        )
        times = duration(r["ours_ns"]), duration(r["peer_ns"])
        rows.append([r["figure"], times[0], times[1], r["peer_name"], f"{r['ratio']:.2f}", counted])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    right = (1, 2, 4)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, [*widths, 0], strict=True))
        ).rstrip()
        for row in rows
    )


def part_name(name: str) -> str:
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(PARTS)}")
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", default=ROOT / "build" / "bench.json")
    parser.add_argument("parts", nargs="*", type=part_name, metavar="PART", help=", ".join(PARTS))
    arguments = parser.parse_args()
    records = [summary(record) for part in arguments.parts or PARTS for record in PARTS[part]()]
    print(table(records))
    arguments.json.parent.mkdir(exist_ok=True)
    arguments.json.write_text(json.dumps(records, indent=1) + "\n")
    print(f"\nbench: {len(records)} figures in {arguments.json}")


if __name__ == "__main__":
    main()
