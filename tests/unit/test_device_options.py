"""Machines on the command line: the same as a file says, and one line for each fault."""

import pytest

from iommufs import device_options, topology_file
from iommufs.devices import MODELS
from iommufs.topology import TopologyError


def functions(*devices, config=None):
    return device_options.topology(config, devices).functions


def test_a_model_alone_is_enough():
    (edu,) = functions("edu")
    assert (edu.bdf, edu.model, edu.group, edu.cdev) == ("0000:00:01.0", "edu", 0, 0)
    assert edu.options == {}


def test_keys_are_those_of_a_function_and_of_its_model():
    (edu,) = functions("edu,group=7,bdf=00:05.0,dma_mask=0xfff")
    assert (edu.bdf, edu.group, edu.options) == ("0000:00:05.0", 7, {"dma_mask": 0xFFF})


def test_addresses_are_chosen_where_none_is_given():
    found = functions("edu", "edu,bdf=0000:00:01.0", "edu,bdf=00:03.1", "edu")
    assert [f.bdf[5:] for f in found] == ["00:02.0", "00:01.0", "00:03.1", "00:04.0"]


def test_the_same_as_a_file_says():
    (given,) = functions('edu,group=3,reset_methods=["flr", "bus"],options.dma_mask=15')
    content = {
        "bdf": "00:01.0",
        "model": "edu",
        "group": 3,
        "reset_methods": ["flr", "bus"],
        "options": {"dma_mask": 15},
    }
    (there,) = topology_file.parse({"function": [content]}, "x", None).functions
    assert given.label == '--device edu,group=3,reset_methods=["flr", "bus"],options.dma_mask=15'
    assert all(
        getattr(given, name) == getattr(there, name)
        for name in given.__dataclass_fields__
        if name != "label"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1K", 1 << 10),
        ("2M", 2 << 20),
        ("3G", 3 << 30),
        ("4T", 4 << 40),
        ("12", 12),
        ("0x1f", 31),
        ("true", True),
        ('"12"', "12"),
        ('"a,b]"', "a,b]"),
        ("[1, 2]", [1, 2]),
        ("{ a = 1, b = [2, 3] }", {"a": 1, "b": [2, 3]}),
        ("word", "word"),
        ("2020-01-01", "2020-01-01"),
        ("nan", "nan"),
        ("1\nb = 2", "1\nb = 2"),
        ("", ""),
    ],
)
def test_values_are_those_of_toml_or_sizes_or_words(text, value):
    (edu,) = functions(f"edu,dma_mask={text},group=1")
    assert edu.options == {"dma_mask": value}


def test_devices_are_added_to_those_of_a_file(tmp_path):
    path = tmp_path / "machine.toml"
    path.write_text('[iommu]\nkind = "amd"\n[[function]]\nbdf = "00:01.0"\nmodel = "edu"\n')
    topology = device_options.topology(str(path), ["edu"])
    assert topology.iommu_kind == "amd"
    assert [f.bdf for f in topology.functions] == ["0000:00:01.0", "0000:00:02.0"]
    assert topology.functions[0].label == f"{path}: function[0]"


def test_an_image_is_found_from_where_the_user_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.hex").write_text("000: 34 12 01 00" + 12 * " 00")
    (inert,) = functions("inert,config=image.hex")
    assert inert.image.vendor == 0x1234


THERE = ", ".join(sorted(MODELS))
FAULTS = {
    "nvme9": f"model: expected one of {THERE}, got 'nvme9'",
    "": f"model: expected one of {THERE}, got ''",
    "edu,fast": "expected KEY=VALUE, got 'fast'",
    "edu,mask=1": "mask: no such key; there is: bdf, group, driver, config, config_bdf, bars, ",
    "edu,options.group=1": "options.group: no such key; there is: ",
    "edu,group=1,group=2": "group: is there twice",
    "edu,group=x": "group: expected int, got str",
    "edu,group=-1": "group: expected a number from 0 to 2**31 - 1",
    "edu,bdf=nowhere": "bdf: expected domain:bus:device.function in hex, got 'nowhere'",
    'edu,reset_methods=["kick"]': "reset_methods[0]: invalid enum value 'kick'",
    "edu,bars={ 0 = 16 }": "bars: expected none: edu knows its own",
    "inert": "config: expected the image of a function without a model",
}


@pytest.mark.parametrize("device", FAULTS)
def test_fault_is_one_line_that_names_option_and_key(device):
    with pytest.raises(TopologyError) as caught:
        functions("edu", device)
    message = str(caught.value).replace("[...]", "[0]")  # older msgspec tells no index
    assert message.startswith(f"--device {device}: {FAULTS[device]}")
    assert "\n" not in message


def test_a_full_bus_is_a_fault():
    assert len(functions(*["edu"] * 31)) == 31
    with pytest.raises(TopologyError, match=r"^--device edu: bdf: expected one: no address"):
        functions(*["edu"] * 32)


def test_faults_of_the_file_name_the_file(tmp_path):
    path = tmp_path / "machine.toml"
    path.write_text("function = 3")
    with pytest.raises(TopologyError, match=f"^{path}: function: expected array, got int"):
        functions("edu", config=str(path))
