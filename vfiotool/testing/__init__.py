"""Fakes for tests of programs that use vfiotool: a machine, devices, and configuration space.

The contract tests of vfiotool compare the fakes with real kernels. This package imports a name when the name
is first used, because every run of pytest imports the package: it contains the pytest plugin.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as in typing, whose import is not free
if TYPE_CHECKING:
    from vfiotool.testing.built_config import config_space as config_space
    from vfiotool.testing.dma_space import DmaFault as DmaFault
    from vfiotool.testing.fake_device import FakeDevice as FakeDevice
    from vfiotool.testing.fake_edu import FakeEdu as FakeEdu
    from vfiotool.testing.fake_host import FakeHost as FakeHost
    from vfiotool.testing.fake_iommu import FakeIommu as FakeIommu
    from vfiotool.testing.fake_opening import open_fake as open_fake

_HOMES = {
    "DmaFault": "vfiotool.testing.dma_space",
    "FakeDevice": "vfiotool.testing.fake_device",
    "FakeEdu": "vfiotool.testing.fake_edu",
    "FakeHost": "vfiotool.testing.fake_host",
    "FakeIommu": "vfiotool.testing.fake_iommu",
    "config_space": "vfiotool.testing.built_config",
    "open_fake": "vfiotool.testing.fake_opening",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
