"""What a topology says of devices without an IOMMU: [[mediated]]."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from iommufs.topology import Mediated, TopologyError

_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class MediatedConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    uuid: str
    model: str
    group: int | None = None
    options: dict[str, Any] = {}


def resolve(configs: Sequence[MediatedConfig], taken: set[int], source: str) -> Iterator[Mediated]:
    """Each has a group of its own, which is not among those that are taken; TopologyError."""
    wanted = {config.group for config in configs}
    uuids = set()
    for i, config in enumerate(configs):
        label = f"{source}: mediated[{i}]"
        if not _UUID.fullmatch(config.uuid):
            raise TopologyError(f"{label}.uuid: expected a UUID, got {config.uuid!r}")
        if config.uuid in uuids:
            raise TopologyError(f"{label}.uuid: {config.uuid} is there already")
        uuids.add(config.uuid)
        group = config.group
        if group is None:
            group = next(n for n in itertools.count() if n not in taken | wanted)
        elif group in taken or not 0 <= group < 1 << 31:
            raise TopologyError(f"{label}.group: expected a number that no other device has")
        taken.add(group)
        yield Mediated(label, config.uuid, config.model, config.options, group)
