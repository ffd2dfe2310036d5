"""A model in C of others: the example of docs/native-models.md, compiled and plugged in."""

import dataclasses
import re
import subprocess
import textwrap
from pathlib import Path
from typing import ClassVar

import pytest

from iommufs import uapi
from iommufs.vfio.model import Bar, Description, Migration, NativeModel
from tests.contract.vfio_client import CONFIG, event

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "native-models.md").read_text()
SOURCE = textwrap.dedent(re.search(r"    #include <stdlib\.h>.*?\n    };\n", PAGE, re.DOTALL)[0])
MSI = 1


@pytest.fixture
def compiled(tmp_path):
    """A library with this source; returns its path."""

    def compiled(source):
        path = tmp_path / "counter.so"
        flags = ["-std=gnu11", "-Wall", "-shared", "-fPIC", f"-I{ROOT / 'native'}"]
        subprocess.run(["cc", *flags, "-xc", "-", "-o", path], input=source, text=True, check=True)
        return str(path)

    return compiled


def counter(path):
    class Counter(NativeModel):
        """Counts how often it was written to."""

        library = path
        symbol = "counter_model"
        options: ClassVar = {"start": "unused"}

        def describe(self):
            return Description(
                vendor=0x1234, device=0x0043, class_code=0xFF0000,
                bars={0: Bar(size=4096, mappable=True)}, msi_vectors=1,
            )  # fmt: skip

    return Counter


async def test_the_example_counts_writes_and_sends_interrupts(vfio, compiled):
    model = counter(compiled(SOURCE))
    vfio.add("0000:09:00.0", lambda host: model(host, {"start": 3}))
    df = await vfio.bound(len(vfio.devices) - 1)
    await vfio.pwrite(df, b"\x06\x00", CONFIG + 4)
    fd = vfio.eventfd()
    flags = uapi.VFIO_IRQ_SET_DATA_EVENTFD | uapi.VFIO_IRQ_SET_ACTION_TRIGGER
    await vfio.set_irqs(df, flags, MSI, 0, 1, fd.to_bytes(4, "little"))
    for n in range(1, 4):
        await vfio.pwrite(df, b"\xff\0\0\0", 0)
        assert await vfio.pread(df, 4, 0) == n.to_bytes(4, "little")
        assert event(fd) == 1
    df.function.bars.view(0)[:4] = b"what"  # a client's mapping
    assert await vfio.pread(df, 4, 0) == b"\4\0\0\0"
    vfio.close(df)
    df = await vfio.bound(len(vfio.devices) - 1)
    assert await vfio.pread(df, 4, 0) == bytes(4)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("IOMMUFS_DEVICE_ABI", "99", "counter_model was built for another version of device.h"),
        ("counter_model", "other_model", "there is no model counter_model in .*counter.so"),
        ("return calloc(1, 1);", "error[0] = 33; error[1] = 0; return NULL;", "^!$"),
    ],
)
async def test_what_cannot_be_loaded_says_why(vfio, compiled, old, new, error):
    model = counter(compiled(SOURCE.replace(old, new)))
    with pytest.raises(ValueError, match=error):
        vfio.add("0000:09:00.0", lambda host: model(host, {}))


@pytest.mark.parametrize("claim", [{"migration": Migration()}, {"dma_logging": True}])
async def test_its_dma_is_its_own_so_it_cannot_be_migrated_nor_logged(vfio, compiled, claim):
    class Migrating(counter(compiled(SOURCE))):
        def describe(self):
            return dataclasses.replace(super().describe(), **claim)

    with pytest.raises(ValueError, match="models in C cannot be migrated"):
        vfio.add("0000:09:00.0", lambda host: Migrating(host, {}))
