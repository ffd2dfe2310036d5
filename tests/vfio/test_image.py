"""Config space made from a description."""

from dataclasses import replace

import pytest

from iommufs.vfio import capabilities as caps
from iommufs.vfio import image
from iommufs.vfio.model import Bar, Description
from tests.vfio.facts import ALL

EDU = Description(
    vendor=0x1234, device=0x11E8, class_code=0x00FF00, revision=0x10, subsystem_vendor=0x1AF4,
    subsystem_device=0x1100, bars={0: Bar(1 << 20, mappable=True)}, msi_vectors=1,
)  # fmt: skip
PLAIN = Description(vendor=1, device=2, class_code=0x010802)


def test_a_description_of_edu_is_edu():
    """But for what firmware assigns: address and interrupt line."""
    expected = bytearray(ALL[0].image)
    made = bytearray(image.power_on(EDU))
    for assigned in (slice(0x10, 0x14), slice(0x3C, 0x3D)):
        expected[assigned] = made[assigned]
    assert made == expected


def test_capabilities_follow_each_other():
    made = image.power_on(
        replace(
            PLAIN, bars={2: Bar(4096)}, msi_vectors=8, msix_vectors=3,
            msix_table=(2, 0x100), msix_pba=(2, 0x800),
        )
    )  # fmt: skip
    assert [(cap.id, cap.length) for cap in caps.standard(made)] == [
        (caps.MSI, 14),
        (caps.MSIX, 12),
    ]
    msix = caps.find(made, caps.MSIX).offset
    assert caps.u16(made, msix + 2) == 2
    assert caps.u32(made, msix + 4) == 0x102
    assert caps.u32(made, msix + 8) == 0x802


def test_bars_get_addresses_that_do_not_overlap():
    bars = {0: Bar(4096), 1: Bar(1 << 24, bits64=True, prefetchable=True), 3: Bar(32, io=True)}
    made = image.power_on(replace(PLAIN, bars=bars, rom=bytes(5000)))
    first, second = caps.u32(made, 0x10), caps.u32(made, 0x14)
    assert first % 4096 == 0
    assert second & 15 == 12
    assert second & ~15 >= first + 4096
    assert (second & ~15) % (1 << 24) == 0
    assert caps.u32(made, 0x1C) & 3 == 1
    assert caps.u32(made, 0x30) % 8192 == 0


def test_without_intx_there_is_no_pin():
    assert image.power_on(replace(EDU, intx=False))[0x3D] == 0
    with_image = replace(EDU, intx=False, config=image.power_on(EDU))
    assert image.power_on(with_image)[0x3D] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"bars": {0: Bar(4097)}},
        {"bars": {0: Bar(8)}},
        {"bars": {0: Bar(8192, mapped=((0, 4096),))}},
        {"bars": {0: Bar(8192, plain=True)}},
        {"bars": {0: Bar(8192, plain=True, mappable=True, io=True)}},
        {"bars": {0: Bar(8192, mappable=True, io=True, mapped=((0, 4096),))}},
        {"bars": {0: Bar(8192, mappable=True, mapped=((0, 2048),))}},
        {"bars": {0: Bar(8192, mappable=True, mapped=((4096, 8192),))}},
        {"bars": {0: Bar(8192, mappable=True, mapped=((4096, 4096), (0, 4096)))}},
        {"bars": {0: Bar(2, io=True)}},
        {"bars": {6: Bar(4096)}},
        {"bars": {5: Bar(4096, bits64=True)}},
        {"bars": {0: Bar(4096, bits64=True), 1: Bar(4096)}},
        {"msi_vectors": 3},
        {"msi_vectors": 64},
        {"msix_vectors": 2049},
        {"msix_vectors": 1},
        {"msix_vectors": 257, "bars": {0: Bar(4096)}, "msix_pba": (0, 2048)},
        {"config": bytes(64)},
    ],
    ids=str,
)
def test_what_no_function_can_be(change):
    with pytest.raises(image.BadDescription):
        image.power_on(replace(PLAIN, **change))
