"""Models that packages ship: found by name, and each fault is one line that says whose it is."""

import errno
import itertools
import subprocess
import sys

import pytest

from iommufs import listing, machine, models
from iommufs.devices import MODELS
from iommufs.errors import UapiError
from iommufs.topology import TopologyError
from tests.packages import install

GOOD = """
    from iommufs.vfio.model import Bar, Description, Model

    class Answer(Model):
        "Answers everything."
        options = {"answer": "what it says"}

        def describe(self):
            return Description(vendor=1, device=2, class_code=3, bars={0: Bar(4096)})
"""
numbers = itertools.count()


@pytest.fixture
def ship(tmp_path, monkeypatch):
    """Installs a package with one model; a module name that nobody has imported yet."""
    monkeypatch.syspath_prepend(tmp_path)

    def ship(text, name="answer", package="answers", where="{}:Answer"):
        module = f"iommufs_test_model_{next(numbers)}"
        install(tmp_path, package, {name: where.format(module)}, {module: text})
        return module

    return ship


def fault(device):
    with pytest.raises(TopologyError) as caught:
        machine.load(None, [device])
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix(f"--device {device}: ")


def test_a_model_of_a_package_is_found(ship):
    module = ship(GOOD)
    assert module not in sys.modules
    made = machine.load(None, ["answer,answer=1"])
    (function,) = made.functions.values()
    assert type(function.model).__module__ == module
    assert function.description.device == 2


def test_it_is_in_the_lists(ship):
    ship(GOOD)
    assert "answer" in models.names()
    assert {
        "model": "answer", "package": "answers 1.0", "help": "Answers everything.",
        "options": {"answer": "what it says"},
    } in listing.models()  # fmt: skip
    assert "answer (answers 1.0): Answers everything." in listing.models_text()


def test_a_run_without_models_of_others_does_not_look_for_them():
    program = "import sys; from iommufs import machine; machine.load(None); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    assert "iommufs.models" in loaded.stdout.split()
    assert "importlib.metadata" not in loaded.stdout.split()


def test_an_unknown_name_lists_all_names(ship):
    ship(GOOD)
    there = ", ".join(sorted([*MODELS, "answer"]))
    assert fault("nothing") == f"model: expected one of {there}, got 'nothing'"


def test_two_packages_with_one_name(ship):
    ship(GOOD, package="answers")
    ship(GOOD, package="questions")
    said = fault("answer")
    assert said == "model: 'answer' is in more than one package: answers 1.0, questions 1.0"


def test_names_of_ours_stay_ours(ship):
    ship(GOOD, name="edu")
    assert machine.load(None, ["edu"]).devices[0].function.description.vendor == 0x1234
    assert "edu (answers 1.0): cannot be used: the name is one of our own models" in (
        listing.models_text()
    )


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("import nothing_of_this_name", "{}:Answer", "ModuleNotFoundError: No module named"),
        ("1 / 0", "{}:Answer", "ZeroDivisionError: division by zero ("),
        ("raise SystemExit('no licence')", "{}:Answer", "SystemExit: no licence ("),
        ("def", "{}:Answer", "SyntaxError: "),
        ("", "{}:Answer", "AttributeError: module"),
        ("", "nothing_of_this_name:Answer", "ModuleNotFoundError: "),
        ("", "this is no entry point", ""),
        ("class Answer: pass", "{}:Answer", "is no subclass of iommufs.vfio.model.Model"),
        ("Answer = 42", "{}:Answer", "is no subclass of iommufs.vfio.model.Model"),
        (GOOD + "        async def reset(self): pass", "{}:Answer", "reset() is async: what waits"),
        (GOOD + "    Answer.options = 5", "{}:Answer", "are no texts by name"),
        (GOOD + "    Answer.options = {'a': None}", "{}:Answer", "are no texts by name"),
    ],
)
def test_a_package_that_is_broken(ship, text, where, what):
    ship(text, where=where)
    said = fault("answer")
    assert said.startswith("model: 'answer' of package answers 1.0: ")
    assert what in said
    entry = next(entry for entry in listing.models() if entry["model"] == "answer")
    assert what in entry["error"]


DESCRIBE = "    class Answer(Answer):\n        def describe(self):\n            "


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("return None", "answer: describe() gave None, not a Description"),
        ("raise NotImplementedError", "answer: NotImplementedError ("),
        ("1 / 0", "answer: ZeroDivisionError: division by zero ("),
        ("return Description(vendor=1 << 16, device=2, class_code=3)", "vendor is 65536, not 16"),
        ("return Description(vendor='a', device=2, class_code=3)", "vendor is 'a', not 16 bits"),
        ("return Description(1, 2, 3, bars={0: Bar(100)})", "answer: BAR 0: size 0x64"),
        ("return Description(1, 2, 3, bars={0: 4096})", "answer: BAR 0: 4096"),
        ("return Description(1, 2, 3, bars={7: Bar(4096)})", "answer: BAR 7 has no room"),
        ("return Description(1, 2, 3, msi_vectors=3)", "answer: 3 MSI vectors"),
        ("return Description(1, 2, 3, rom='text')", "answer: "),
        ("return Description(1, 2, 3, bars=[Bar(4096)])", "answer: "),
        ("return Description(1, 2, 3, config=b'short')", "answer: 5 bytes of config space"),
        ("return Description(1, 2, 3, writable={'a': 1})", "answer: "),
    ],
)
def test_a_model_that_cannot_describe_itself(ship, text, what):
    ship(GOOD + DESCRIBE + text)
    assert what in fault("answer")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("raise ValueError('answer must be 42')", "answer: answer must be 42"),
        ("raise KeyError('answer')", "answer: KeyError: 'answer' ("),
        ("raise SystemExit(3)", "answer: SystemExit: 3 ("),
        ("host.start(self.nothing)", "answer: AttributeError: "),
        ("host.store(0, 0, 4, 1)", "answer: AttributeError: "),
    ],
)
def test_a_model_that_cannot_be_made(ship, text, what):
    ship(GOOD + "        def __init__(self, host, options):\n            " + text)
    assert what in fault("answer")


@pytest.mark.logs("a device model failed")
@pytest.mark.parametrize("made", [None, "no model"])
def test_a_virtual_function_that_cannot_be_made(monkeypatch, made, log_lines):
    """EIO for who asks for them, and there are none."""
    machine_ = machine.load(None)
    dev = machine_.bus.devs["0000:05:00.0"]
    model = dev.inside.model
    broken = {"make_vf": lambda host, index: made} if made else {"make_vf": lambda *args: 1 / 0}
    monkeypatch.setattr(model, "make_vf", broken["make_vf"])
    with pytest.raises(UapiError) as caught:
        machine_.virtual_functions.enable(dev, 2, lambda vf: None)
    assert caught.value.errno == errno.EIO
    assert dev.virtfns == []
    assert machine_.virtual_functions.capability(dev).enabled == 0
    assert (log_lines[0]["device"], log_lines[0]["call"]) == ("0000:05:00.0", "make_vf")
    monkeypatch.undo()
    machine_.virtual_functions.enable(dev, 2, lambda vf: None)
    assert len(dev.virtfns) == 2
