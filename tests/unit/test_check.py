"""What `iommufs check` makes of settings that the machine of the tests need not have."""

import pytest

from iommufs import check, user_namespace


@pytest.fixture
def scope(tmp_path, monkeypatch):
    def set_scope(value):
        path = tmp_path / "ptrace_scope"
        path.write_text(f"{value}\n")
        monkeypatch.setattr(check, "PTRACE_SCOPE", str(path))

    return set_scope


@pytest.mark.parametrize(("value", "state"), [(0, "yes"), (1, "yes"), (2, "yes"), (3, "no")])
def test_ptrace_scope_forbids_runs_only_where_nobody_may_trace(scope, value, state):
    scope(value)
    assert check._memory().state == state


@pytest.mark.parametrize(("value", "remedy"), [(0, ""), (1, "sysctl kernel.yama.ptrace_scope=0")])
def test_ptrace_scope_is_named_for_a_mount_by_a_user(scope, monkeypatch, value, remedy):
    scope(value)
    monkeypatch.setattr(user_namespace, "may_mount", lambda: False)
    monkeypatch.setattr(check.shutil, "which", lambda name: name)
    found = check._mount_command()
    assert found.state == "less"
    assert found.remedy == (remedy or "run as root (sudo)")


def test_a_machine_without_yama_allows_it(monkeypatch):
    monkeypatch.setattr(check, "PTRACE_SCOPE", "/nowhere")
    assert check._memory().state == "yes"
