"""Which keys a topology's file has, with their types and what they are without a value."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from iommufs.topology_mediated import MediatedConfig

VFIO_DRIVER = "vfio-pci"


class Keys(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    pass


class ReservedKeys(Keys):
    start: int
    last: int
    type: Literal["msi", "direct", "direct-relaxable", "reserved"] = "reserved"


class IommuKeys(Keys):
    kind: str = "vtd"
    reserved: tuple[ReservedKeys, ...] = ()
    options: dict[str, Any] = {}


class IommufdKeys(Keys):
    test: bool = False


class FunctionKeys(Keys):
    bdf: str
    model: str = "inert"
    group: int | None = None
    driver: str = VFIO_DRIVER
    config: str | None = None
    config_bdf: str | None = None
    bars: dict[str, int] = {}
    writable: dict[str, int] = {}
    rom: int = 0
    contents: dict[str, str] = {}
    vf_bars: dict[str, int] = {}
    vf_config: str | None = None
    reset_methods: tuple[
        Literal["device_specific", "acpi", "flr", "af_flr", "pm", "bus", "cxl_bus"], ...
    ] = ()
    reset_scope: Literal["bus", "slot", "none"] | None = None
    irq: int | None = None
    dma_mask_bits: int = 32
    vga: bool = False
    options: dict[str, Any] = {}


class FileKeys(Keys):
    function: tuple[FunctionKeys, ...] = ()
    mediated: tuple[MediatedConfig, ...] = ()
    iommu: IommuKeys = IommuKeys()
    iommufd: IommufdKeys = IommufdKeys()
