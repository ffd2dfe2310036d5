"""The questions of probe/processes.c: what becomes of clients as processes come, change and go."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.root]
HERE = Path(__file__).parent

WALKS = {path.stem: path for path in HERE.glob("linux-7.3-walk-*.jsonl")}
# Which roads it takes, and whether addresses are random: without that, a program that is executed
# anew lies where it lay before.
RUNS = {"in C": ("1", []), "in Python": ("0", []), "not randomized": ("1", ["setarch", "-R"])}


@pytest.fixture(scope="module")
def reference(compare):
    return compare.load_file(HERE / "linux-7.3-processes.jsonl")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    program = tmp_path_factory.mktemp("processes") / "processes"
    source = HERE / "probe" / "processes.c"
    subprocess.run(["cc", "-std=gnu11", "-O1", "-pthread", "-o", program, source], check=True)
    return program


@pytest.fixture(params=RUNS)
def run(request, program, machine, compare):
    """What it writes under `iommufs run`, whose log may tell of refused DMA only."""
    fast, prefix = RUNS[request.param]
    command = [sys.executable, "-m", "iommufs.cli", "run", "--config", machine(), "--", *prefix]

    def run(*arguments):
        done = subprocess.run(
            [*command, program, *arguments], capture_output=True, text=True, timeout=120,
            check=False, stdin=subprocess.DEVNULL, cwd=HERE.parent.parent,
            env=os.environ | {"IOMMUFS_FAST": fast},
        )  # fmt: skip
        log = [line for line in done.stderr.splitlines() if "DMA refused" not in line]
        assert (done.returncode, log) == (0, [])
        return compare.load(done.stdout.splitlines())

    return run


def test_answers_are_those_of_linux(reference, run, compare, exceptions):
    transcript = run()

    def outcome(records, key):
        return compare.outcome(records[key]) if key in records else "none"

    known = [e for e in exceptions.load() if e.section in {key.section for key in reference}]
    needed, unknown = set(), []
    for key, parts in compare.divergences(reference, transcript):
        names = key.section, key.name, outcome(reference, key), outcome(transcript, key)
        covering = [e for e in known if e.covers(*names)]
        needed.update(covering)
        if not covering:
            unknown.append((*names, parts))
    assert not unknown
    assert needed == set(known), "an exception is not needed"


# Where addresses are not random, it is not known that those who are left share what is counted.
@pytest.mark.parametrize("run", ["in C", "in Python"], indirect=True)
@pytest.mark.parametrize("name", sorted(WALKS))
def test_a_random_walk(name, run, compare):
    *_, seed, n_steps = name.split("-")
    linux, ours = compare.load_file(WALKS[name]), run("walk", seed, n_steps)
    first = next(iter(compare.divergences(linux, ours)), None)
    assert first is None, compare.describe(*first, linux.get(first[0]), ours.get(first[0]))
    assert len(linux) > int(n_steps) * 0.9
