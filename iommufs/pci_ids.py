"""new_id and remove_id of a driver: the ids of functions that it takes besides its own."""

from __future__ import annotations

import errno
import re

from iommufs.errors import UapiError
from iommufs.pci_bus import ANY, Driver, PciBus, PciId

_FIELD = re.compile(r"\s*(?:0[xX])?([0-9a-fA-F]+)")
_U32 = 0xFFFFFFFF


def _fields(text: str, most: int) -> list[int]:
    """The hexadecimal numbers that a text begins with; EINVAL: fewer than two."""
    found: list[int] = []
    at = 0
    while len(found) < most and (match := _FIELD.match(text, at)):
        found.append(int(match[1], 16) & _U32)
        at = match.end()
    if len(found) < 2:
        raise UapiError(errno.EINVAL, f"{text!r}: expected a vendor and a device")
    return found


def new_id(bus: PciBus, driver: Driver, text: str) -> None:
    """From now on the driver takes functions with these ids.

    text  VENDOR DEVICE [SUBVENDOR SUBDEVICE [CLASS MASK [DATA]]]

    Those that have no driver are given to it. EINVAL; EEXIST: it takes them already.
    Source: new_id_store()
    """
    fields = _fields(text, 7)
    given = PciId(*fields[:6])
    if len(fields) == 7:
        if fields[6]:
            raise UapiError(errno.EINVAL, "no driver here has data of its own for an id")
    elif any(known.matches(given) for known in (*driver.ids, *driver.dynamic)):
        raise UapiError(errno.EEXIST, f"{driver.name} takes {text!r} already")
    driver.dynamic.append(given)
    bus.probe_all(driver)


def remove_id(driver: Driver, text: str) -> None:
    """The opposite, for the first that matches; functions that it has it keeps. EINVAL, ENODEV.

    Source: remove_id_store()
    """
    fields = _fields(text, 6)
    vendor, device = fields[:2]
    subvendor, subdevice, class_code, mask = (fields[2:] + [ANY, ANY, 0, 0][len(fields) - 2 :])[:4]
    for known in driver.dynamic:
        if (
            (known.vendor, known.device) == (vendor, device)
            and subvendor in (ANY, known.subvendor)
            and subdevice in (ANY, known.subdevice)
            and not (known.class_code ^ class_code) & mask
        ):
            driver.dynamic.remove(known)
            return
    raise UapiError(errno.ENODEV, f"{driver.name} has no id {text!r}")
