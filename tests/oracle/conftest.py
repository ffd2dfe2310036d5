"""What the oracle's tests share: the modules beside them, and the machine that the guest is."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DEFAULT = HERE.parent.parent / "iommufs" / "topologies" / "default.toml"


def load_module(name):
    """compare.py and exceptions.py are programs, of no package."""
    spec = importlib.util.spec_from_file_location(f"oracle_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def compare():
    return load_module("compare")


@pytest.fixture(scope="session")
def exceptions():
    return load_module("exceptions")


@pytest.fixture(scope="session")
def machine(tmp_path_factory):
    """The default machine as the reference guest has it: its kernel has the test ioctl."""

    def make(kind="vtd"):
        directory = tmp_path_factory.mktemp("machine")
        (directory / "default").symlink_to(DEFAULT.with_suffix(""))
        config = directory / "machine.toml"
        text = DEFAULT.read_text()
        assert 'kind = "vtd"' in text
        config.write_text("[iommufd]\ntest = true\n" + text.replace('"vtd"', f'"{kind}"'))
        return config

    return make
