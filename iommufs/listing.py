"""What `iommufs devices` and `iommufs models` print: rows for people, objects for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iommufs import models as found
from iommufs.devices import MODELS
from iommufs.topology_file import FUNCTION_KEYS

if TYPE_CHECKING:  # models can be listed without all that a machine is made of
    from iommufs.machine import Machine
    from iommufs.topology import Function, Mediated
    from iommufs.vfio.device import VfioDevice
    from iommufs.vfio.model import Bar, Description

_UNITS = ((40, "T"), (30, "G"), (20, "M"), (10, "K"))


def devices(machine: Machine) -> list[dict[str, Any]]:
    """Every function of a machine, in the order of its topology; then what is no function."""
    functions = [_device(machine, function) for function in machine.topology.functions]
    places = zip(machine.topology.mediated, machine.mediated, strict=True)
    return functions + [_mediated(slot, device) for slot, device in places]


def _mediated(slot: Mediated, device: VfioDevice) -> dict[str, Any]:
    kind = device.function.description.mediated
    entry = {
        "bdf": None,
        "uuid": slot.uuid,
        "model": slot.model,
        "group": slot.group,
        "driver": kind.parent,
        "cdev": f"vfio{device.index}",
        "hot_reset": [],
        "reset_methods": [],
        "options": dict(slot.options),
    }
    return {**entry, **_inside(device.function.description)}


def _inside(description: Description) -> dict[str, Any]:
    return {
        "id": f"{description.vendor:04x}:{description.device:04x}",
        "class": f"{description.class_code:06x}",
        "bars": [_bar(index, bar) for index, bar in sorted(description.bars.items())],
        "rom": len(description.rom),
        "msi": description.msi_vectors,
        "msix": description.msix_vectors,
    }


def _device(machine: Machine, function: Function) -> dict[str, Any]:
    from iommufs.pci_bus import HostFunction  # loaded with the machine

    made = machine.functions[function.bdf]
    description = function.description() if isinstance(made, HostFunction) else made.description
    return {
        "bdf": function.bdf,
        "model": function.model,
        "group": function.group,
        "driver": function.driver,
        "cdev": None if function.cdev is None else f"vfio{function.cdev}",
        "reset_methods": list(function.reset_methods),
        "hot_reset": list(function.hot_reset),
        "options": dict(function.options),
        **_inside(description),
    }


def _bar(index: int, bar: Bar) -> dict[str, Any]:
    return {
        "index": index,
        "size": bar.size,
        "kind": "io" if bar.io else "memory",
        "mappable": bar.mappable,
        "bits64": bar.bits64,
        "prefetchable": bar.prefetchable,
    }


def models() -> list[dict[str, Any]]:
    """Every model by name: its line of help and its options, and where it comes from.

    `package` is None for our own; what cannot be used has an `error` instead of options.
    """
    packages = found.packages()
    hidden = [
        {"model": name, "package": package, "error": "the name is one of our own models"}
        for name, package in sorted(packages.items())
        if name in MODELS
    ]
    return [_model(name, packages.get(name)) for name in found.names()] + hidden


def _model(name: str, package: str | None) -> dict[str, Any]:
    entry = {"model": name, "package": None if name in MODELS else package}
    try:
        model = found.find(name)
    except found.ModelError as error:
        return {**entry, "error": str(error)}
    help_line = (model.__doc__ or "").strip().partition("\n")[0]
    return {**entry, "help": help_line, "options": dict(model.options)}


def devices_text(machine: Machine) -> str:
    """A table, one line for each device."""
    heads = ("ADDRESS", "MODEL", "ID", "GROUP", "CDEV", "BARS", "RESET")
    rows = [heads]
    for device in devices(machine):
        bars = [f"{bar['index']}:{_size(bar)}" for bar in device["bars"]]
        rows.append(
            (
                device["bdf"] or device["uuid"],
                *(device["model"], device["id"], str(device["group"])),
                device["cdev"] or f"({device['driver'] or 'no driver'})",
                " ".join(bars) or "-",
                ",".join(device["reset_methods"]) or "-",
            )
        )
    return _table(rows)


def _size(bar: dict[str, Any]) -> str:
    kind = "" if bar["kind"] == "memory" else " ports"
    for shift, unit in _UNITS:
        if not bar["size"] % (1 << shift):
            return f"{bar['size'] >> shift}{unit}{kind}"
    return f"{bar['size']}{kind}"


def models_text() -> str:
    """Each model with its options, and the keys that every function has."""
    lines = []
    for model in models():
        package = f" ({model['package']})" if model["package"] else ""
        if "error" in model:
            lines.append(f"{model['model']}{package}: cannot be used: {model['error']}")
            continue
        lines.append(f"{model['model']}{package}: {model['help']}")
        lines += [f"    {name}: {line}" for name, line in model["options"].items()]
    keys = ", ".join(key for key in FUNCTION_KEYS if key not in ("model", "options"))
    return "\n".join([*lines, "", f"Keys of every function: {keys}"])


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
             for row in rows)  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)
