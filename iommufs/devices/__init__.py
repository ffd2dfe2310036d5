"""The device models that come with iommufs, by the name a topology calls them."""

from iommufs.devices.edu import Edu
from iommufs.devices.igb import Igb
from iommufs.devices.inert import Inert
from iommufs.devices.nvme import Nvme
from iommufs.devices.pri import Pri
from iommufs.devices.serial import Serial
from iommufs.devices.testdev import Testdev
from iommufs.vfio.model import Model

MODELS: dict[str, type[Model]] = {
    "edu": Edu,
    "igb": Igb,
    "inert": Inert,
    "nvme": Nvme,
    "pri": Pri,
    "serial": Serial,
    "testdev": Testdev,
}
