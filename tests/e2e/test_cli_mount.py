"""`iommufs mount` and `iommufs run` as a user types them, around the default machine."""

import configparser
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
IOMMUFS = [sys.executable, "-m", "iommufs.cli"]
LONG = 30


def iommufs(*arguments):
    return subprocess.run(
        [*IOMMUFS, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=LONG
    )


def is_mounted(path):
    return f" {path} " in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def directory(tmp_path):
    yield tmp_path
    if is_mounted(tmp_path):
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def start_mount(directory):
    child = subprocess.Popen(
        [*IOMMUFS, "mount", str(directory)], cwd=ROOT, stdout=-1, stderr=-1, text=True
    )
    assert child.stdout.readline() == f"iommufs: serving on {directory}\n"
    return child


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_mount_serves_until_it_is_told_to_stop(directory, number):
    child = start_mount(directory)
    assert is_mounted(directory)
    assert sorted(os.listdir(directory)) == ["dev", "sys"]
    vendor = directory / "sys/bus/pci/devices/0000:00:06.0/vendor"
    assert vendor.read_text() == "0x1234\n"
    child.send_signal(number)
    assert child.communicate(timeout=LONG) == ("", "")
    assert child.returncode == 0
    assert not is_mounted(directory)


def test_a_mounted_machine_changes_through_its_sys(directory):
    child = start_mount(directory)
    vfio = directory / "sys/bus/pci/drivers/vfio-pci"
    (vfio / "unbind").write_text("0000:00:06.0\n")
    assert not (directory / "dev/vfio/devices/vfio0").exists()
    assert not (directory / "dev/vfio/5").exists()
    (vfio / "bind").write_text("0000:00:06.0\n")
    assert (directory / "dev/vfio/devices/vfio0").exists()
    with pytest.raises(OSError, match="busy"):
        (vfio / "bind").write_text("0000:00:06.0\n")
    child.terminate()
    assert child.communicate(timeout=LONG) == ("", "")


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_service_manager_is_told_when_it_is_ready_and_when_it_stops(directory, tmp_path, kind):
    name = (
        f"{directory.parent}/notify-{os.getpid()}" if kind == "path" else f"@iommufs-{os.getpid()}"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(LONG)
        manager.bind(name.replace("@", "\0"))
        environment = {**os.environ, "NOTIFY_SOCKET": name}
        child = subprocess.Popen(
            [*IOMMUFS, "mount", str(directory)], cwd=ROOT, stdout=-1, text=True, env=environment
        )
        assert manager.recv(100) == b"READY=1"
        assert is_mounted(directory)
        child.terminate()
        assert manager.recv(100) == b"STOPPING=1"
        child.communicate(timeout=LONG)
        assert child.returncode == 0
    if kind == "path":
        os.unlink(name)


def test_the_unit_says_what_the_command_line_takes(directory):
    """Its arguments, on another directory."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(ROOT / "examples" / "iommufs.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    program, *arguments, mounted_on = service["ExecStart"].split()
    assert Path(program).name == "iommufs"
    assert mounted_on == f"/run/{service['RuntimeDirectory']}"
    name = arguments[arguments.index("--name") + 1]
    arguments[arguments.index("--name") + 1] = f"{name}-{os.getpid()}"
    child = subprocess.Popen([*IOMMUFS, *arguments, str(directory)], cwd=ROOT, stdout=-1, text=True)
    assert child.stdout.readline() == f"iommufs: serving on {directory}\n"
    child.terminate()
    child.communicate(timeout=LONG)
    assert child.returncode == 0


def test_mount_ends_when_somebody_unmounts(directory):
    child = start_mount(directory)
    subprocess.run(["umount", directory], check=True)
    assert child.communicate(timeout=LONG) == ("", "")
    assert child.returncode == 0


def test_mount_stops_while_files_are_open(directory):
    child = start_mount(directory)
    fd = os.open(directory / "dev/iommu", os.O_RDWR)
    child.terminate()
    assert child.communicate(timeout=LONG) == ("", "")
    with pytest.raises(OSError, match="not connected"):
        os.read(fd, 1)
    with contextlib.suppress(OSError):  # closes it, but cannot tell the server
        os.close(fd)
    assert not is_mounted(directory)


def test_a_dead_mount_is_named(directory):
    child = start_mount(directory)
    child.kill()
    child.communicate()
    result = iommufs("mount", str(directory))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "umount" in result.stderr


@pytest.mark.parametrize("target", ["missing", "file"])
def test_what_is_no_directory_is_named(tmp_path, target):
    (tmp_path / "file").touch()
    result = iommufs("mount", str(tmp_path / target))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert str(tmp_path / target) in result.stderr


def test_run_shows_the_default_machine():
    result = iommufs("run", "ls", "/sys/bus/pci/devices/0000:00:06.0/vfio-dev", "/dev/vfio/devices")
    assert result.returncode == 0
    assert "vfio0" in result.stdout


@pytest.mark.parametrize("command", ["run", "mount"])
@pytest.mark.parametrize(
    ("text", "named"), [("[iommufd]\nnonsense = 1\n", "nonsense"), ("x = [", ""), (None, "")]
)
def test_a_bad_config_is_one_line_that_names_it(tmp_path, command, text, named):
    config = tmp_path / "bad.toml"
    if text is not None:
        config.write_text(text)
    last = "true" if command == "run" else str(tmp_path)
    result = iommufs(command, "--config", str(config), last)
    assert result.returncode == (125 if command == "run" else 1)
    assert result.stdout == ""
    assert result.stderr.startswith("iommufs: ")
    assert result.stderr.count("\n") == 1
    assert str(config) in result.stderr
    assert named in result.stderr
