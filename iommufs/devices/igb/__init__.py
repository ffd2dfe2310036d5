"""Intel 82576 (docs/igb.md)."""

from iommufs.devices.igb.model import Igb

__all__ = ["Igb"]
