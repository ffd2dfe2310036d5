"""The benchmark runs, and what it counts is right. What it measures is nobody's business here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "bench" / "run.py"


def figures(tmp_path, part):
    """By name: the JSON of a run of one part."""
    path = tmp_path / "bench.json"
    command = [sys.executable, RUN, "--json", path, part]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    records = {record["figure"]: record for record in json.loads(path.read_text())}
    for name, record in records.items():
        assert name in done.stdout
        assert len(record["ours"]) == len(record["peer"]) > 2
        assert record["ratio"] > 0
    return records


def test_a_map_costs_one_lookup_per_mapping_and_its_leaves_and_touches_no_page(tmp_path):
    found = {
        name: tuple(record["facts"].values())
        for name, record in figures(tmp_path, "maps").items()
        if name.startswith("core: ")
    }
    assert found == {  # lookups, leaves, bytes of tables, pages touched
        "core: MAP + UNMAP 4 KiB, one page table": (1, 1, 3 * 4096, 0),
        "core: MAP + UNMAP 64 MiB, one page table": (1, 32, 2 * 4096, 0),
        "core: MAP + UNMAP 1 GiB, one page table": (1, 1, 4096, 0),
        "core: MAP + UNMAP 4 MiB in 1024 mappings": (1024, 2, 2 * 4096, 0),
    }


@pytest.mark.mount
def test_ioctls_that_map_touch_no_page(tmp_path):
    found = [
        record["facts"]["client_pages_touched"]
        for name, record in figures(tmp_path, "ioctls").items()
        if name.endswith(("64 MiB, device attached", "1 GiB, device attached"))
    ]
    assert found == [0, 0]
