"""What `iommufs devices` and `iommufs models` say."""

import json

import pytest

from iommufs import cli, listing, machine
from iommufs.devices import MODELS
from iommufs.topology_file import FUNCTION_KEYS


def printed(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(list(arguments))
    assert exit_info.value.code == 0
    return capsys.readouterr().out


def test_devices_are_listed_in_order_with_what_a_client_will_find(capsys):
    (edu,) = json.loads(printed(capsys, "devices", "--device", "edu,group=7", "--json"))
    assert (edu["bdf"], edu["group"], edu["cdev"], edu["id"]) == (
        *("0000:00:01.0", 7, "vfio0", "1234:11e8"),
    )
    (bar,) = edu["bars"]
    assert bar == {
        **{"index": 0, "size": 1 << 20, "kind": "memory", "mappable": True},
        **{"bits64": False, "prefetchable": False},
    }


def test_every_function_of_the_default_machine_has_its_line(capsys):
    lines = printed(capsys, "devices").splitlines()
    made = machine.load(None)
    assert [line.split()[0] for line in lines[1:]] == list(made.functions)
    rows = {line.split()[0]: line.split()[3:] for line in lines[1:]}
    assert rows["0000:00:06.0"] == ["5", "vfio0", "0:1M", "-"]
    assert rows["0000:00:02.0"] == ["1", "(pcieport)", "0:4K", "-"]
    column = lines[0].index("BARS")
    assert all(line[column - 2 : column] == "  " != line[column] for line in lines)


def test_models_have_a_line_of_help_and_so_have_their_options(capsys):
    text = printed(capsys, "models")
    for name, model in MODELS.items():
        assert f"\n{name}: {vars(model)['__doc__'].splitlines()[0]}\n" in f"\n{text}"
        assert all(f"    {key}: {line}" in text for key, line in model.options.items())
    assert all(key in text for key in set(FUNCTION_KEYS) - {"model", "options"})
    assert json.loads(printed(capsys, "models", "--json")) == listing.models()


def test_a_faulty_machine_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["devices", "--device", "edu,dma_mask=x"])
    assert exit_info.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "iommufs: --device edu,dma_mask=x: edu: "
        "dma_mask must be an integer of at most 64 bits, not 'x'\n"
    )


def test_devices_without_an_iommu_are_among_them(tmp_path, capsys):
    uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
    config = tmp_path / "machine.toml"
    config.write_text(f'[[mediated]]\nuuid = "{uuid}"\nmodel = "serial"\n')
    line = printed(capsys, "devices", "--config", str(config)).splitlines()[1].split()
    assert line == [uuid, "serial", "4348:3253", "0", "vfio0", "0:8", "ports", "1:8", "ports", "-"]
    (device,) = json.loads(printed(capsys, "devices", "--json", "--config", str(config)))
    assert (device["bdf"], device["uuid"], device["driver"]) == (None, uuid, "mtty")
