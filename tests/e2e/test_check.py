"""`iommufs check`, as who one may be: what it says is what runs then do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.root]

ROOT = Path(__file__).parents[2]
SOMEBODY = [sys.executable, str(Path(__file__).with_name("unprivileged.py"))]
CHECK = [sys.executable, "-m", "iommufs.cli", "check"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def run(*command):
    result = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert result.stderr == ""
    return result.returncode, result.stdout


def check(*before):
    status, out = run(*before, *CHECK, "--json")
    return status, {finding["name"]: finding for finding in json.loads(out)}


def test_root_is_told_that_all_that_matters_works():
    status, found = check()
    assert status == 0
    assert found["mapping BARs"]["text"] == "passed through to memory"
    assert {f["state"] for name, f in found.items() if name != "hugepages"} == {"yes"}


@pytest.mark.parametrize("kind", ["user", "container"])
def test_others_are_told_what_is_less(kind):
    status, found = check(*SOMEBODY, kind)
    assert status == 0
    assert found["namespaces"]["text"] == "in a user namespace of each run's own"
    assert found["mapping BARs"]["text"] == "through the page cache"
    assert found["mapping BARs"]["remedy"] == "run as root (sudo)"
    assert found["returned descriptors"]["state"] == "yes"
    assert not [finding for finding in found.values() if finding["state"] == "no"]


def test_what_forbids_runs_is_named_with_the_command_and_fails():
    script = """
        echo 0 > /proc/sys/user/max_user_namespaces
        exec setpriv --bounding-set=-sys_admin -- "$@"
    """
    status, found = check(*SOMEBODY, "namespace", "sh", "-ec", script, "sh")
    assert status == 1
    assert found["namespaces"]["state"] == "no"
    assert found["namespaces"]["remedy"] == "sysctl user.max_user_namespaces=10000"


def test_in_a_run_the_second_filter_is_what_is_missing():
    status, found = check(sys.executable, "-m", "iommufs.cli", "run", "--")
    assert status == 0
    assert found["returned descriptors"]["state"] == "less"


def test_nothing_of_the_trial_is_left():
    before = Path("/proc/self/mountinfo").read_text()
    assert run(*CHECK)[0] == 0
    assert Path("/proc/self/mountinfo").read_text() == before


def test_the_text_has_a_line_for_each_and_one_for_what_would_change_it():
    status, out = run(*SOMEBODY, "user", *CHECK)
    assert status == 0
    assert "less mapping BARs            through the page cache\n" in out
    assert "                             to change it: run as root (sudo)\n" in out
