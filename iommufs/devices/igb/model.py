"""`igb`: Intel's 82576 Gigabit Ethernet controller, 8086:10c9 (docs/igb.md is its datasheet).

What it does is C: native/igb.h. Here is what describes it to the machine, and the check of its
options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from iommufs.devices.igb import identity
from iommufs.vfio.model import Description, Host, NativeModel

_MAC = re.compile("([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")


class Igb(NativeModel):
    """Intel 82576 Gigabit Ethernet controller, 8086:10c9 (docs/igb.md)."""

    symbol = "igb"

    options: ClassVar[Mapping[str, str]] = {
        "wire": "functions with the same name here hear each other",
        "mac": "the MAC address in its NVM (default 52:54:00:82:35:76, + 1 for each on the wire)",
        "pcap_out": "file that records the frames it sends, in libpcap's format",
        "pcap_in": "file of frames that come in, in libpcap's format, anew after each reset",
        "tap": "network interface of this machine that is plugged in (made if there is none)",
        "trap": "registers of interrupts and statistics cannot be mapped, so that QEMU traps them",
    }

    def __init__(self, host: Host, options: Mapping[str, Any]) -> None:
        self._traps = options.get("trap", False)
        if type(self._traps) is not bool:
            raise ValueError(f"trap must be true or false, not {self._traps!r}")
        super().__init__(host, options)

    def describe(self) -> Description:
        return identity.describe(traps=self._traps)

    def native_options(self, options: Mapping[str, Any]) -> Sequence[str]:
        found = {
            "wire": _string(options, "wire"),
            "mac": _mac(options),
            "pcap_out": _string(options, "pcap_out"),
            "pcap_in": _string(options, "pcap_in"),
            "tap": _string(options, "tap"),
        }
        return [f"{key}={value}" for key, value in found.items() if value is not None]


def _mac(options: Mapping[str, Any]) -> str | None:
    text = options.get("mac")
    if text is None:
        return None
    if not isinstance(text, str) or not _MAC.fullmatch(text):
        raise ValueError(f"mac must be like 52:54:00:82:35:76, not {text!r}")
    if int(text[:2], 16) & 1:
        raise ValueError(f"mac must not be a multicast address, as {text} is")
    return text


def _string(options: Mapping[str, Any], name: str) -> str | None:
    value = options.get(name)
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        raise ValueError(f"{name} must be a string, not {value!r}")
    return value
