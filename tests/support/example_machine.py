"""A machine with a device of each kind that docs/reading-devices.md shows, and the names of its devices."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from vfiotool.pci.acs import PortType
from vfiotool.testing import FakeHost, config_space

PORT, NIC = "0000:00:1c.0", "0000:02:00.0"
GPU_PORT, GPU, SOUND = "0000:00:01.0", "0000:01:00.0", "0000:01:00.1"
PF_PORT, PF, VF, VF1 = "0000:00:1d.0", "0000:03:00.0", "0000:03:10.0", "0000:03:10.2"
CARDBUS, DEAD = "0000:05:04.0", "0000:2f:00.0"
VMD, VMD_PORT, NVME = "0000:00:0e.0", "10000:e0:06.0", "10000:e1:00.0"

NAMES = b"""\
1028  Dell
10de  NVIDIA Corporation
\t0bee  GF116 High Definition Audio Controller
\t1244  GF116 [GeForce GTX 550 Ti]
\t\t1462 809d  N550GTX-Ti Cyclone II
1180  Ricoh Co Ltd
\t0476  RL5c476 II
144d  Samsung Electronics Co Ltd
\ta808  NVMe SSD Controller SM981/PM981/PM983
1462  Micro-Star International Co., Ltd. [MSI]
17a0  Genesys Logic, Inc
\t9755  GL9755 SD Host Controller
8086  Intel Corporation
\t10c9  82576 Gigabit Network Connection
\t\t8086 a03c  Gigabit ET Dual Port Server Adapter
\t10ca  82576 Virtual Function
\t10d3  82574L Gigabit Network Connection
\t\t8086 a01f  Gigabit CT Desktop Adapter
\t1901  6th-10th Gen Core Processor PCIe Controller (x16)
\t467f  Volume Management Device NVMe RAID Controller
\ta294  200 Series PCH PCI Express Root Port #5
\ta298  200 Series PCH PCI Express Root Port #9
\ta74d  PCI Express Root Port

C 00  Unclassified device
C 01  Mass storage controller
\t04  RAID bus controller
\t08  Non-Volatile memory controller
\t\t02  NVM Express
C 02  Network controller
\t00  Ethernet controller
C 03  Display controller
\t00  VGA compatible controller
\t\t00  VGA controller
C 04  Multimedia controller
\t03  Audio device
C 06  Bridge
\t04  PCI bridge
\t\t00  Normal decode
\t07  CardBus bridge
C 08  Generic system peripheral
\t05  SD Host controller
\t\t01  DMA
"""
_SLOW = {"current_link_speed": "2.5 GT/s PCIe", "current_link_width": "1"}


def build(host: FakeHost) -> None:
    """Add the devices of the machine."""
    host.add_driver("vfio-pci")
    _add_nic(host)
    _add_gpu(host)
    _add_sriov(host)
    _add_others(host)
    host.put(
        f"/lib/modules/{host.kernel}/modules.alias",
        "alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e\n"
        "alias pci:v00008086d000010C9sv*sd*bc*sc*i* igb\n"
        "alias pci:v00008086d000010CAsv*sd*bc*sc*i* igbvf\n"
        "alias pci:v000010DEd*sv*sd*bc03sc*i* nouveau\n"
        "alias pci:v000010DEd*sv*sd*bc03sc00i00* nvidia\n"
        "alias pci:v*d*sv*sd*bc01sc08i02* nvme\n",
    )


def _add_nic(host: FakeHost) -> None:
    _add_port(host, PORT, 0xA294, 12)
    bars = {0: "f7100000 f711ffff 40200", 2: "e000 e01f 40101", 3: "f7120000 f7123fff 40200"}
    config = _config(0x8086, 0x10D3, 0x020000, bars={0x10: 0xF7100000, 0x18: 0xE001, 0x1C: 0xF7120000})
    _add(
        host,
        NIC,
        0x8086,
        0x10D3,
        0x020000,
        config,
        bars,
        "e1000e",
        group=13,
        bridge=PORT,
        subsystem_vendor="0x8086",
        subsystem_device="0xa01f",
        reset_method="flr pm",
        irq="16",
        label="Onboard LAN",
        index="1",
        max_link_speed="2.5 GT/s PCIe",
        max_link_width="1",
        link=_SLOW,
    )
    for number in (127, 128, 129):
        host.put(f"{host.devices[NIC].folder}/msi_irqs/{number}", "msix")
    host.put("/sys/bus/pci/slots/4/address", NIC.rpartition(".")[0])
    host.add_class("net", "enp2s0", f"{host.devices[NIC].folder}/net/enp2s0", operstate="down")


def _add_gpu(host: FakeHost) -> None:
    _add_port(host, GPU_PORT, 0x1901, 1, has_acs=False)
    link = {
        "max_link_speed": "8.0 GT/s PCIe",
        "max_link_width": "16",
        "current_link_speed": "2.5 GT/s PCIe",
        "current_link_width": "16",
    }
    bars = {
        0: "dc000000 dcffffff 40200",
        1: "d0000000 d7ffffff 14220c",
        3: "0 1ffffff 2014220c",
        5: "d000 d07f 40101",
        6: "de000000 de07ffff 46200",
    }
    config = _config(
        0x10DE,
        0x1244,
        0x030000,
        header_type=0x80,
        rom=0xDE000000,
        bars={0x10: 0xDC000000, 0x14: 0xD000000C, 0x1C: 0xC, 0x24: 0xD001},
    )
    _add(
        host,
        GPU,
        0x10DE,
        0x1244,
        0x030000,
        config,
        bars,
        "nouveau",
        group=1,
        bridge=GPU_PORT,
        subsystem_vendor="0x1462",
        subsystem_device="0x809d",
        revision="0xa1",
        irq="130",
        reset_method="bus",
        boot_vga="1",
        link=link,
    )
    config = _config(0x10DE, 0x0BEE, 0x040300, header_type=0x80, bars={0x10: 0xDE080000})
    _add(
        host,
        SOUND,
        0x10DE,
        0x0BEE,
        0x040300,
        config,
        {0: "de080000 de083fff 40200"},
        "snd_hda_intel",
        group=1,
        bridge=GPU_PORT,
        revision="0xa1",
        irq="17",
        reset_method="bus",
        link=link,
    )


def _add_sriov(host: FakeHost) -> None:
    _add_port(host, PF_PORT, 0xA298, 14)
    wide = {"max_link_speed": "2.5 GT/s PCIe", "max_link_width": "4"} | _SLOW
    config = _config(0x8086, 0x10C9, 0x020000, bars={0x10: 0xF6000000}, extended=[(0x10, 0x100)])
    _add(
        host,
        PF,
        0x8086,
        0x10C9,
        0x020000,
        config,
        {0: "f6000000 f601ffff 40200"},
        "igb",
        group=15,
        bridge=PF_PORT,
        subsystem_vendor="0x8086",
        subsystem_device="0xa03c",
        revision="0x01",
        irq="18",
        totalvfs=7,
        link=wide,
    )
    for number, address in enumerate((VF, VF1)):
        registers = bytearray(_config(0xFFFF, 0xFFFF, 0x020000, command=0))
        _add(
            host,
            address,
            0x8086,
            0x10CA,
            0x020000,
            bytes(registers),
            {0: f"f60{4 + 2 * number}0000 f60{4 + 2 * number}3fff 14220c"},
            "vfio-pci" if address == VF else "igbvf",
            group=16 + number,
            physfn=PF,
            irq="0",
            subsystem_vendor="0x8086",
            subsystem_device="0xa03c",
            revision="0x01",
        )


def _add_others(host: FakeHost) -> None:
    cardbus = bytearray(config_space(vendor=0x1180, device=0x0476, class_code=0x060700, header_type=2))
    struct.pack_into("<H", cardbus, 4, 0x7)
    struct.pack_into("<I", cardbus, 0x10, 0xF5000000)
    _add(
        host,
        CARDBUS,
        0x1180,
        0x0476,
        0x060700,
        bytes(cardbus),
        {0: "f5000000 f5000fff 40200"},
        "yenta_cardbus",
        group=9,
        subsystem_vendor="0x1028",
        subsystem_device="0x0152",
        revision="0xba",
        irq="19",
        reset_method="pm",
    )
    _add(
        host,
        DEAD,
        0x17A0,
        0x9755,
        0x080501,
        b"\xff" * 256,
        {0: "f4000000 f4000fff 40200"},
        None,
        group=20,
        revision="0x01",
        irq="0",
    )
    config = _config(
        0x8086, 0x467F, 0x010400, kind=PortType.INTEGRATED_ENDPOINT, bars={0x10: 0x4, 0x14: 0x60}
    )
    _add(
        host,
        VMD,
        0x8086,
        0x467F,
        0x010400,
        config,
        {0: "6000000000 6001ffffff 140204"},
        "vmd",
        group=8,
        irq="0",
        reset_method="",
    )
    _add_port(host, VMD_PORT, 0xA74D, 8, domain_of=VMD)
    _add(
        host,
        NVME,
        0x144D,
        0xA808,
        0x010802,
        _config(0x144D, 0xA808, 0x010802),
        {},
        "nvme",
        group=8,
        bridge=VMD_PORT,
        irq="0",
    )


def _add_port(
    host: FakeHost,
    address: str,
    device: int,
    group: int,
    *,
    domain_of: str | None = None,
    has_acs: bool = True,
) -> None:
    acs = [(0x0D, 0x100)] if has_acs else []
    config = bytearray(
        _config(0x8086, device, 0x060400, header_type=1, kind=PortType.ROOT_PORT, extended=acs)
    )
    if has_acs:
        struct.pack_into("<HH", config, 0x104, 0x1F, 0x1D)  # supported, and enabled
    _add(
        host,
        address,
        0x8086,
        device,
        0x060400,
        bytes(config),
        {},
        "pcieport",
        group=group,
        domain_of=domain_of,
        revision="0xf0",
        irq="122",
        reset_method="pm",
        max_link_speed="8.0 GT/s PCIe",
        max_link_width="4",
        link=_SLOW,
    )


def _add(
    host: FakeHost,
    address: str,
    vendor: int,
    device: int,
    class_code: int,
    config: bytes,
    bars: Mapping[int, str],
    driver: str | None,
    *,
    group: int,
    bridge: str | None = None,
    physfn: str | None = None,
    domain_of: str | None = None,
    totalvfs: int | None = None,
    link: Mapping[str, str] | None = None,
    **attributes: str,
) -> None:
    """Add a device; ``bars`` has start, end and flags of each range, in hexadecimal."""
    lines = [" ".join(f"0x{int(one, 16):016x}" for one in bars.get(at, "0 0 0").split()) for at in range(7)]
    host.add_device(
        address,
        vendor=vendor,
        device=device,
        class_code=class_code,
        driver=driver,
        group=group,
        bridge=bridge,
        physfn=physfn,
        domain_of=domain_of,
        totalvfs=totalvfs,
        config=config,
        resource="\n".join(lines),
        **attributes,
    )
    for name, text in (link or {}).items():
        host.put(f"{host.devices[address].folder}/{name}", text)


def _config(
    vendor: int,
    device: int,
    class_code: int,
    *,
    command: int = 0x7,
    header_type: int = 0,
    kind: PortType = PortType.ENDPOINT,
    bars: Mapping[int, int] | None = None,
    rom: int = 0,
    extended: list[tuple[int, int]] | None = None,
) -> bytes:
    """Return the registers of a PCI Express function; ``bars`` are registers by their offset."""
    capabilities = [
        (0x01, 0x40, bytes(6)),
        (0x05, 0x50, bytes(12)),
        (0x10, 0x70, struct.pack("<H", 2 | kind << 4) + bytes(56)),
    ]
    config = bytearray(
        config_space(
            vendor=vendor,
            device=device,
            class_code=class_code,
            header_type=header_type,
            capabilities=capabilities,
            extended=extended or [],
        )
    )
    struct.pack_into("<H", config, 4, command)
    for offset, value in (bars or {}).items():
        struct.pack_into("<I", config, offset, value)
    struct.pack_into("<I", config, 0x30, rom)
    return bytes(config)
