"""NVMe by its specification: ``Nvme`` drives a controller, ``IoQueue`` reads and writes."""

from vfiotool.drivers.nvme.commands import Completion
from vfiotool.drivers.nvme.driver import Nvme
from vfiotool.drivers.nvme.errors import NvmeError, NvmeStatusError, NvmeTimeoutError
from vfiotool.drivers.nvme.identify import ControllerInfo, NamespaceInfo
from vfiotool.drivers.nvme.io_queue import IoQueue

__all__ = [
    "Completion",
    "ControllerInfo",
    "IoQueue",
    "NamespaceInfo",
    "Nvme",
    "NvmeError",
    "NvmeStatusError",
    "NvmeTimeoutError",
]
