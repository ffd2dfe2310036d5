"""The command line as far as nothing is mounted: one clear line for every bad use."""

import contextlib
import errno
import os

import pytest

from iommufs import cli, launcher


def failure(capsys, *arguments):
    """The exit status and the one line that a bad use prints."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    assert out == ""
    line, *rest = err.splitlines()
    assert rest == []
    assert line.startswith("iommufs: ")
    return exit_info.value.code, line


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["run"], 125, "no command"),
        (["run", "--"], 125, "no command"),
        (["run", "--config"], 125, "--config"),
        (["run", "--nonsense", "true"], 125, "--nonsense"),
        (["run", "--log-level", "loud", "true"], 125, "loud"),
        (["mount"], 2, "DIR"),
        (["mount", "/", "more"], 2, "more"),
        (["fly"], 2, "fly"),
        pytest.param(["mount", ""], 1, "DIR: No such file", marks=pytest.mark.mount),
        (["devices", "--config", ""], 1, "--config: expected a file"),
    ],
)
def test_bad_use_is_one_line(capsys, arguments, status, text):
    code, line = failure(capsys, *arguments)
    assert code == status
    assert text in line


def test_what_cannot_be_written_is_one_line(capsys, monkeypatch):
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        code, line = failure(capsys, "models")
    assert (code, line) == (1, "iommufs: No space left on device")


def test_no_arguments_print_the_help(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([])
    assert exit_info.value.code == 2
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_asking_is_no_failure(capsys, arguments):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert not exit_info.value.code
    assert capsys.readouterr().out.startswith(("Usage: iommufs", "iommufs "))


def test_options_after_the_command_are_the_commands(monkeypatch):
    seen = []
    monkeypatch.setattr(launcher, "launch", lambda command, server: seen.append(command) or 0)
    for separator in [], ["--"]:
        with pytest.raises(SystemExit):
            cli.main(["run", "--log-level", "info", *separator, "ls", "--config", "--", "-l"])
    assert seen == [["ls", "--config", "--", "-l"]] * 2


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.ENOENT, "modprobe fuse"), (errno.EPERM, "--device /dev/fuse"), (errno.ENXIO, "opened")],
)
def test_without_dev_fuse_the_line_says_what_to_change(capsys, monkeypatch, number, text):
    def refuse(path, flags, *rest):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(launcher.os, "open", refuse)
    code, line = failure(capsys, "run", "true")
    assert code == 125
    assert "/dev/fuse" in line
    assert text in line
