"""The probe that asked a real Linux asks us: every record is compared (see README.md)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.oracle.conftest import load_module

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


compare = load_module("compare")
exceptions = load_module("exceptions")
INTEL, AMD = (compare.load_file(HERE / f"linux-7.3-{name}.jsonl") for name in ("intel", "amd"))
SECTIONS = list(dict.fromkeys(key.section for key in INTEL))
# AMD's transcript has only the sections in which it is not the same as Intel's.
AMD_SECTIONS = {key.section for key in AMD}
COMMON = {key: record for key, record in INTEL.items() if key.section not in AMD_SECTIONS}
REFERENCES = {"vtd": INTEL, "amd": COMMON | AMD}


# The kind of the IOMMU, and whether plain calls may be finished without Python.
RUNS = {"vtd": ("vtd", "1"), "amd": ("amd", "1"), "vtd, in Python": ("vtd", "0")}


@pytest.fixture(scope="module", params=RUNS)
def run(request):
    return RUNS[request.param]


@pytest.fixture(scope="module")
def kind(run):
    """Of the IOMMU."""
    return run[0]


@pytest.fixture(scope="module")
def probe(tmp_path_factory, machine, run):
    """What the probe wrote under `iommufs run`, and what the server said meanwhile."""
    directory = tmp_path_factory.mktemp("oracle")
    program = directory / "probe"
    source = directory / "source"
    shutil.copytree(HERE / "probe", source)
    # It maps itself, by the name that it had in the guest.
    maps_itself = source / "devices.h"
    text = maps_itself.read_text()
    assert text.count('"/job/prog"') == 1
    maps_itself.write_text(text.replace("/job/prog", str(program)))
    subprocess.run(["cc", "-std=gnu11", "-O1", "-o", program, source / "probe.c"], check=True)
    # The test ioctl moves the end of the ioctl table.
    config = machine(run[0])
    command = [Path(sys.prefix) / "bin" / "iommufs", "run", "--config", config, "--", program]
    environment = os.environ | {"IOMMUFS_FAST": run[1]}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done


def outcome(record):
    if record is None:
        return "none"
    return str(record["ret"]) if record["errno"] == "0" else record["errno"]


@pytest.fixture(scope="module")
def differences(probe, kind):
    """Section → [(name, Linux' outcome, ours, which parts differ)]."""
    reference, transcript = REFERENCES[kind], compare.load(probe.stdout.splitlines())
    found = {}
    for key, parts in compare.divergences(reference, transcript):
        linux, ours = (outcome(records.get(key)) for records in (reference, transcript))
        found.setdefault(key.section, []).append((key.name, linux, ours, parts))
    return found


@pytest.mark.mount
@pytest.mark.parametrize("section", SECTIONS)
def test_section_answers_as_linux(section, differences):
    known = [e for e in exceptions.load() if e.section == section]
    unknown = [
        difference
        for difference in differences.get(section, [])
        if not any(e.covers(section, *difference[:3]) for e in known)
    ]
    assert not unknown, json.dumps(unknown, indent=1)


@pytest.mark.mount
def test_every_exception_is_needed(differences):
    unneeded = [
        e
        for e in exceptions.load()
        if e.section in SECTIONS
        and not any(e.covers(e.section, *found[:3]) for found in differences.get(e.section, []))
    ]
    assert not unneeded


@pytest.mark.mount
def test_the_probe_leaves_no_unexpected_line_in_the_log(probe):
    """Refused DMA is reported, and nothing else."""
    lines = [line for line in probe.stderr.splitlines() if "DMA refused" not in line]
    assert lines == []


def test_the_documentation_lists_the_exceptions():
    text = exceptions.DOCUMENT.read_text()
    assert text == exceptions.document_with_table(text), "run exceptions.py --write"
