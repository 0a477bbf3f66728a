"""vfiotool.vfio.uapi against the C headers: every size, offset, flag and ioctl number.

A C program made from the ctypes definitions prints the compiler's values of <linux/vfio.h> and
<linux/iommufd.h>: of the lab's debug kernel if it was built, else of the installed headers. Items that
the headers are too old for are skipped.
"""

from __future__ import annotations

import ctypes
import enum
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import REQUIRE_LAB, missing
from tests.support.guest_runs import build_debug_kernel
from vfiotool.lab import kernels
from vfiotool.vfio import uapi

pytestmark = pytest.mark.late

# The prefix of each enumeration in the header.
C_NAMES: dict[type[enum.IntEnum] | type[enum.IntFlag], str] = {
    uapi.ContainerIoctl: "{}",
    uapi.GroupIoctl: "{}",
    uapi.DeviceIoctl: "{}",
    uapi.IommuType: "VFIO_{}_IOMMU",
    uapi.Extension: "VFIO_{}",
    uapi.GroupFlags: "VFIO_GROUP_FLAGS_{}",
    uapi.DeviceInfoFlags: "VFIO_DEVICE_FLAGS_{}",
    uapi.RegionInfoFlags: "VFIO_REGION_INFO_FLAG_{}",
    uapi.IrqInfoFlags: "VFIO_IRQ_INFO_{}",
    uapi.IrqSetFlags: "VFIO_IRQ_SET_{}",
    uapi.HotResetInfoFlags: "VFIO_PCI_HOT_RESET_FLAG_{}",
    uapi.BindFlags: "VFIO_DEVICE_BIND_FLAG_{}",
    uapi.DeviceFeatureFlags: "VFIO_DEVICE_FEATURE_{}",
    uapi.DeviceFeature: "VFIO_DEVICE_FEATURE_{}",
    uapi.AtomicCompFlags: "VFIO_PCI_{}",
    uapi.Type1InfoFlags: "VFIO_IOMMU_INFO_{}",
    uapi.DmaMapFlags: "VFIO_DMA_MAP_FLAG_{}",
    uapi.DmaUnmapFlags: "VFIO_DMA_UNMAP_FLAG_{}",
    uapi.IommufdIoctl: "{}",
    uapi.IoasMapFlags: "IOMMU_IOAS_MAP_{}",
    uapi.IommuOption: "IOMMU_OPTION_{}",
    uapi.IommuOptionOp: "IOMMU_OPTION_OP_{}",
    uapi.PciRegion: "VFIO_PCI_{}_REGION_INDEX",
    uapi.PciIrq: "VFIO_PCI_{}_IRQ_INDEX",
    uapi.DeviceInfoCap: "VFIO_DEVICE_INFO_CAP_{}",
    uapi.RegionInfoCap: "VFIO_REGION_INFO_CAP_{}",
    uapi.Type1InfoCap: "VFIO_IOMMU_TYPE1_INFO_CAP_{}",
}
# The only constant whose name in the header differs from the others.
ODD_NAMES = {"VFIO_IOMMU_TYPE1_INFO_CAP_DMA_AVAIL": "VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL"}
# Since 6.6 the header pads vfio_device_info, which ours leaves out: kernels before it
# put the first capability where the padding would be.
ODD_SIZES = {"vfio_device_info": "offsetof(struct vfio_device_info, cap_offset) + sizeof(__u32)"}
# Fields that a structure got later: older headers have neither the field nor our size.
NEWER_FIELDS = {"vfio_device_bind_iommufd": "token_uuid_ptr"}


class Item(NamedTuple):
    """A number: a C expression, the identifier that the header must contain, and our value."""

    expression: str
    needs: str
    value: int


def structures() -> list[type[ctypes.Structure]]:
    return [
        kind
        for kind in vars(uapi).values()
        if isinstance(kind, type) and issubclass(kind, ctypes.Structure) and kind is not ctypes.Structure
    ]


def enumerations() -> list[type[enum.IntEnum] | type[enum.IntFlag]]:
    return [
        kind
        for kind in vars(uapi).values()
        if isinstance(kind, type)
        and issubclass(kind, (enum.IntEnum, enum.IntFlag))
        and kind not in (enum.IntEnum, enum.IntFlag)
    ]


def structure_items(kind: type[ctypes.Structure]) -> list[Item]:
    name = kind.__name__
    size = ODD_SIZES.get(name, f"sizeof(struct {name})")
    newer = NEWER_FIELDS.get(name, name)
    items = [Item(size, newer, ctypes.sizeof(kind))]
    for field, *_ in kind._fields_:
        ours = getattr(kind, field)
        member = f"((struct {name} *)0)->{field}"
        needs = field if field == newer else name
        items.append(Item(f"offsetof(struct {name}, {field})", needs, ours.offset))
        items.append(Item(f"sizeof({member})", needs, ours.size))
    return items


def all_items() -> list[Item]:
    items = [Item("VFIO_API_VERSION", "VFIO_API_VERSION", uapi.VFIO_API_VERSION)]
    for kind in structures():
        items += structure_items(kind)
    for enumeration in enumerations():
        for member in enumeration:
            spelled = C_NAMES[enumeration].format(member.name)
            name = ODD_NAMES.get(spelled, spelled)
            items.append(Item(name, name, member.value))
    return items


def compiler() -> str:
    name = os.environ.get("CC", "gcc")
    if shutil.which(name) is None and "VFIOTOOL_REQUIRE_LAB" not in os.environ:
        pytest.skip(f"no C compiler: {name} is not on PATH")
    return name


class Header(NamedTuple):
    """Results of the C compiler: the identifiers of the header, and the values of expressions."""

    version: str
    words: frozenset[str]
    values: dict[str, int]


def debug_kernel_headers() -> list[str]:
    """The folder with the debug kernel's headers, if it was built; ``scripts/test`` builds it."""
    if REQUIRE_LAB:
        build_debug_kernel()
    known = [one for one in kernels.available() if one.name == kernels.BUILT and one.path is not None]
    return [f"{one.path}/usr/include" for one in known if os.path.isdir(f"{one.path}/usr/include")]


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Header:
    """Compile and run a program that prints every item of the installed header."""
    folder: Path = tmp_path_factory.mktemp("uapi")
    include = (
        "#include <linux/vfio.h>\n#include <linux/version.h>\n#include <stddef.h>\n"
        "#if __has_include(<linux/iommufd.h>)\n#include <linux/iommufd.h>\n#endif\n"
    )
    flags = [f"-I{path}" for path in debug_kernel_headers()]
    text = run(compiler(), *flags, "-E", "-dD", "-x", "c", "-", stdin=include)
    words = frozenset(re.findall(r"\w+", text))
    known = ["LINUX_VERSION_CODE", *(i.expression for i in all_items() if i.needs in words)]
    lines = "".join(f'\tprintf("%lld\\n", (long long)({expression}));\n' for expression in known)
    source = folder / "uapi.c"
    source.write_text(f"{include}#include <stdio.h>\nint main(void)\n{{\n{lines}\treturn 0;\n}}\n")
    run(compiler(), *flags, "-Wall", "-Wextra", "-Werror", "-o", str(folder / "uapi"), str(source))
    numbers = [int(line) for line in run(str(folder / "uapi")).split()]
    code = numbers[0]
    return Header(f"{code >> 16}.{code >> 8 & 0xFF}", words, dict(zip(known, numbers, strict=True)))


def run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("item", all_items(), ids=lambda item: item.expression)
def test_item_agrees_with_the_c_header(header: Header, item: Item) -> None:
    if item.needs not in header.words:
        pytest.skip(f"the headers of Linux {header.version} have no {item.needs}")
    assert item.value == header.values[item.expression]


def test_the_debug_kernels_headers_have_all_items_up_to_6_12(header: Header) -> None:
    if not debug_kernel_headers():
        missing("the debug kernel was not built: run scripts/build-kernel")
    newer = {item.needs for item in all_items()} - header.words
    assert newer <= {
        "IOMMU_IOAS_MAP_FILE",  # 6.14
        "iommu_ioas_map_file",  # 6.14
        "VFIO_DEVICE_BIND_FLAG_TOKEN",  # 6.18
        "token_uuid_ptr",  # 6.18
        "VFIO_DEVICE_FEATURE_DMA_BUF",  # 6.19
        "vfio_device_feature_dma_buf",  # 6.19
        "vfio_region_dma_range",  # 6.19
    }


def test_ioctl_numbers_are_unique_for_each_kind_of_fd() -> None:
    for kind in (uapi.ContainerIoctl, uapi.GroupIoctl, uapi.DeviceIoctl, uapi.IommufdIoctl):
        assert len(kind) == len(kind.__members__)
