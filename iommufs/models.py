"""Models by name: our own, and those that installed packages ship.

A package names its models as entry points of the group "iommufs.models"; a topology calls them by
the same names. Packages are looked at only when a name is none of ours, or when all are wanted.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping
from typing import Any

from iommufs.devices import MODELS
from iommufs.vfio.model import Model

GROUP = "iommufs.models"


class ModelError(Exception):
    """There is no such model, or it cannot be used; the message is one line."""


def find(name: str) -> type[Model]:
    """The class of a model; ModelError. Our own names are nobody else's."""
    if name in MODELS:
        return MODELS[name]
    entries = _entry_points(name=name)
    if not entries:
        raise ModelError(f"expected one of {', '.join(names())}, got {name!r}")
    if len(entries) > 1:
        packages = ", ".join(sorted(_package(entry) for entry in entries))
        raise ModelError(f"{name!r} is in more than one package: {packages}")
    return _load(entries[0])


def names() -> list[str]:
    """All models that there are, loadable or not."""
    return sorted({*MODELS, *(entry.name for entry in _entry_points())})


def packages() -> dict[str, str]:
    """Which package a model of others comes from. One that has a name of ours is not found."""
    return {entry.name: _package(entry) for entry in _entry_points()}


def why(error: BaseException) -> str:
    """One line about an exception in somebody's model: what, and the place it was raised at."""
    text = " ".join(str(error).split())
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" ({frame.filename}:{frame.lineno})" for frame in where)
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def _entry_points(**selection: str) -> list[Any]:
    # Costs more than all of a run that has only models of ours.
    from importlib import metadata

    return list(metadata.entry_points(group=GROUP, **selection))


def _package(entry: Any) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _load(entry: Any) -> type[Model]:
    what = f"{entry.name!r} of package {_package(entry)}"
    try:
        model = entry.load()
    except (Exception, SystemExit) as error:
        raise ModelError(f"{what}: cannot load {entry.value}: {why(error)}") from error
    if not (isinstance(model, type) and issubclass(model, Model)):
        raise ModelError(f"{what}: {entry.value} is no subclass of iommufs.vfio.model.Model")
    for call in dir(Model):
        if inspect.iscoroutinefunction(getattr(model, call)):
            raise ModelError(f"{what}: {call}() is async: what waits is a task for Host.start()")
    options = model.options
    if not isinstance(options, Mapping) or any(
        not isinstance(text, str) for pair in options.items() for text in pair
    ):
        raise ModelError(f"{what}: options of {entry.value} are no texts by name")
    return model
