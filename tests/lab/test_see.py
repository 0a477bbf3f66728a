"""list, groups and show of every device, compared with lspci, raw configuration space and raw sysfs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.guest import (
    BRIDGE,
    BUS,
    E1000_PAIR,
    E1000E,
    GROUPS,
    MACHINE,
    OTHER_E1000E,
    OTHER_NVME,
    RELEASE,
    SUBSYSTEM_NVME,
    await_,
    done,
    group,
    link,
    listing,
    needs_iommu,
    output,
    path,
    read,
    remove,
    rescan,
    vfiotool,
    vfiotool_as_nobody,
    write,
)
from vfiotool.host import variant_drivers
from vfiotool.host.attributes import addresses
from vfiotool.host.devices import read_devices
from vfiotool.host.tree import Tree
from vfiotool.lab import machines, qemu
from vfiotool.pci.names import PciNames

pytestmark = pytest.mark.needs_guest

_NAME = re.compile(r"(.*) \[([0-9a-f]{4})\]")
_CAPABILITY = re.compile(r"^\tCapabilities: \[([0-9a-f]+)(?: v\d+)?\]", re.MULTILINE)
_REGION = re.compile(
    r"^\tRegion (?P<index>\d): (?P<kind>Memory|I/O ports) at (?P<start>[0-9a-f]+)"
    r"(?: \((?P<width>32|64)-bit, (?P<prefetch>non-)?prefetchable\))?.*"
    r" \[size=(?P<size>\d+)(?P<unit>[KMG]?)\]",
    re.MULTILINE,
)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SSVID = 0x0D
_DOWNSTREAM = {OTHER_NVME: "0000:05:00.0", OTHER_E1000E: "0000:05:01.0"}
_ROOT_PORT = "0000:00:02.0"
_REFUSED = 3

Fields = dict[str, Any]


@pytest.fixture(scope="module")
def listed() -> dict[str, Fields]:
    return listing()


@pytest.fixture(scope="module")
def shown(listed: dict[str, Fields]) -> dict[str, Fields]:
    return {address: done("show", address) for address in listed}


@pytest.fixture(scope="module")
def verbose() -> dict[str, str]:
    """The output of ``lspci -vvv`` for each device."""
    paragraphs = output("lspci", "-D", "-vvv").strip().split("\n\n")
    return {paragraph.split(" ", 1)[0]: paragraph for paragraph in paragraphs}


@pytest.fixture(scope="module")
def configs(listed: dict[str, Fields]) -> dict[str, bytes]:
    return {address: config(address) for address in listed}


def config(address: str) -> bytes:
    with open(path(address, "config"), "rb") as file:
        return file.read()


def test_the_machine_is_as_declared(listed: dict[str, Fields]) -> None:
    declared = {f"0000:{one.address}": one.ids for one in machines.get(MACHINE).devices(qemu.models())}
    ids = {address: f"{one['vendor_id']:04x}:{one['device_id']:04x}" for address, one in listed.items()}
    assert {address: ids.get(address) for address in declared} == declared
    others = {"0000:00:00.0", "0000:00:1c.0", "0000:00:1d.0", "0000:00:1f.0"}  # chip set, root, console
    if MACHINE == "virtio-iommu":
        others.add("0000:00:1e.0")
    if MACHINE == "amd":
        (iommu,) = [address for address, one in listed.items() if one["class_code"] >> 8 == 0x0806]
        others.add(iommu)
    assert ids.keys() - declared.keys() == others


def test_list_agrees_with_lspci(listed: dict[str, Fields]) -> None:
    records = output("lspci", "-vmm", "-nn", "-D", "-k").strip().split("\n\n")
    expected = dict(map(as_fields, records))
    assert {a: {name: one[name] for name in expected[a]} for a, one in listed.items()} == expected


def as_fields(record: str) -> tuple[str, Fields]:
    """Return vfiotool's fields from lspci's output for a device; absent fields have their defaults."""
    said = dict(line.split(":\t", 1) for line in record.splitlines())
    vendor, vendor_id = named(said["Vendor"])
    device, device_id = named(said["Device"])
    subsystem_ids = tuple(named(said[field])[1] if field in said else 0 for field in ("SVendor", "SDevice"))
    subsystem_device = subsystem(said, "SDevice", "Device")
    if subsystem_device == device and subsystem_ids != (vendor_id, device_id):
        # lspci takes the device's name for an unknown subsystem if it looks into udev's database
        subsystem_device = f"Device {subsystem_ids[1]:04x}"
    return said["Slot"], {
        "address": said["Slot"],
        "class_code": named(said["Class"])[1] << 8 | int(said.get("ProgIf", "0"), 16),
        "vendor_id": vendor_id,
        "device_id": device_id,
        "vendor": f"Vendor {vendor_id:04x}" if vendor == "Vendor" else vendor,
        "device": f"Device {device_id:04x}" if device == "Device" else device,
        "class_name": named(said["Class"])[0],
        "subsystem_vendor": subsystem(said, "SVendor", "Vendor"),
        "subsystem_device": subsystem_device,
        "subsystem_vendor_id": subsystem_ids[0],
        "subsystem_device_id": subsystem_ids[1],
        "revision": int(said.get("Rev", "0"), 16),
        "driver": said.get("Driver"),
        "numa_node": int(said.get("NUMANode", "-1")),
        "iommu_group": int(said["IOMMUGroup"]) if "IOMMUGroup" in said else None,
    }


def subsystem(said: dict[str, str], field: str, unnamed: str) -> str | None:
    """Return the name in a field of lspci; it prints no subsystem of zeros."""
    if field not in said:
        return None
    name, number = named(said[field])
    return f"{name} {number:04x}" if name == unnamed else name


def named(text: str) -> tuple[str, int]:
    match = _NAME.fullmatch(text)
    assert match, text
    return match[1], int(match[2], 16)


def test_list_agrees_with_configuration_space(listed: dict[str, Fields], configs: dict[str, bytes]) -> None:
    names = "vendor_id", "device_id", "subsystem_vendor_id", "subsystem_device_id", "revision", "class_code"
    expected = {address: dict(zip(names, identity(raw), strict=True)) for address, raw in configs.items()}
    assert {a: {name: one[name] for name in names} for a, one in listed.items()} == expected


def identity(raw: bytes) -> tuple[int, ...]:
    """Return the ids in a header; a bridge has its subsystem, if any, in a capability."""
    subsystem = raw[0x2C:0x30]
    if raw[0x0E] & 0x7F == 1:
        at = next((offset for number, offset in standard_chain(raw) if number == _SSVID), None)
        subsystem = bytes(4) if at is None else raw[at + 4 : at + 8]
    parts = raw[0:2], raw[2:4], subsystem[:2], subsystem[2:], raw[8:9], raw[9:12]
    return tuple(int.from_bytes(part, "little") for part in parts)


def standard_chain(raw: bytes) -> Iterator[tuple[int, int]]:
    offset = raw[0x34] if raw[6] & 0x10 else 0
    while offset:
        yield raw[offset], offset
        offset = raw[offset + 1]


def extended_chain(raw: bytes) -> Iterator[tuple[int, int]]:
    offset = 0x100 if len(raw) > 0x100 and raw[0x100:0x104] != bytes(4) else 0
    while offset:
        header = int.from_bytes(raw[offset : offset + 4], "little")
        yield header & 0xFFFF, offset
        offset = header >> 20


def test_bridges_by_class_equal_bridges_by_header(
    listed: dict[str, Fields], configs: dict[str, bytes]
) -> None:
    """Up to 5.18, viability depends on the type of the header; vfiotool derives it from the class."""
    bridges = {address for address, raw in configs.items() if raw[0x0E] & 0x7F}
    assert {a for a, one in listed.items() if one["class_code"] >> 8 == 0x0604} == bridges
    assert len(bridges) == 8


def test_list_agrees_with_sysfs(listed: dict[str, Fields]) -> None:
    assert listed.keys() == set(os.listdir(f"{BUS}/devices"))
    for address, one in listed.items():
        expected = raw_fields(address)
        assert {name: one[name] for name in expected} == expected
        assert not one["blocked"]
        assert one["cdev"] is None  # Debian's kernels have no VFIO_DEVICE_CDEV


def raw_fields(address: str) -> Fields:
    override, methods = read(path(address, "driver_override")), read(path(address, "reset_method"))
    vfs, totalvfs = read(path(address, "sriov_numvfs")), read(path(address, "sriov_totalvfs"))
    unknown = {
        "power_state": not os.path.exists(path(address, "power_state")),
        "reset_methods": methods is None and os.path.exists(path(address, "reset")),
    }
    return {
        "driver": link(path(address, "driver")),
        "driver_override": None if override == "(null)" else override,
        "iommu_group": group(address),
        "is_vf": False,
        "physfn": None,
        "vfs": [],
        "sriov_totalvfs": None if totalvfs is None else int(totalvfs),
        "sriov_numvfs": None if vfs is None else int(vfs),
        "reset_methods": None if unknown["reset_methods"] else (methods or "").split(),
        "power_state": read(path(address, "power_state")),
        "unavailable": sorted((name for name, is_unknown in unknown.items() if is_unknown), reverse=True),
    }


def test_groups_agree_with_sysfs() -> None:
    names = os.listdir(GROUPS) if os.path.isdir(GROUPS) else []
    expected = {int(name): raw_group(name) for name in names}
    assert bool(expected) == (MACHINE != "none")
    groups = done("groups")["groups"]
    assert [one["id"] for one in groups] == sorted(expected)
    assert {one["id"]: {name: one[name] for name in expected[one["id"]]} for one in groups} == expected


def raw_group(name: str) -> Fields:
    regions = (read(f"{GROUPS}/{name}/reserved_regions") or "").splitlines()
    return {
        "type": read(f"{GROUPS}/{name}/type"),
        "devices": sorted(os.listdir(f"{GROUPS}/{name}/devices")),
        "reserved_regions": [
            {"start": int(start, 16), "end": int(end, 16), "type": kind}
            for start, end, kind in (line.split(None, 2) for line in regions)
        ],
        "node": f"/dev/vfio/{name}" if os.path.exists(f"/dev/vfio/{name}") else None,
        "holders": [],
        "unavailable": [],
    }


def test_groups_have_the_causes_of_sharing() -> None:
    """By lspci, the switch and the bridge have no ACS; the root ports have it enabled."""
    bridged = f"{', '.join(E1000_PAIR)}: behind {BRIDGE}, a PCIe-to-PCI bridge, "
    expected = dict.fromkeys(E1000_PAIR, bridged) | {
        address: f"{address}: behind {port}, a switch's downstream port without ACS, "
        for address, port in _DOWNSTREAM.items()
    }
    for one in done("groups")["groups"]:
        starts = {expected[address] for address in one["devices"] if address in expected}
        assert (len(one["devices"]) > 1) == bool(starts)
        assert len(one["why"]) == len(starts)
        assert all(line.startswith(tuple(starts)) for line in one["why"])


def test_the_modalias_equals_that_of_sysfs() -> None:
    """Debian's kernels have no variant driver: kmod finds vfio-pci, if the kernel's vfio-pci has an alias."""
    tree = Tree()
    for device in read_devices(tree, addresses(tree), PciNames(b"")):
        name = variant_drivers.modalias(device)
        assert name == read(path(device.address, "modalias"))
        assert variant_drivers.best_vfio_driver(tree, device) == "vfio-pci"
    if RELEASE >= (5, 16):
        assert output("modprobe", "--resolve-alias", f"vfio_{name}").split() == ["vfio_pci"]


def test_show_repeats_the_listing(listed: dict[str, Fields], shown: dict[str, Fields]) -> None:
    assert {address: one["device"] for address, one in shown.items()} == listed


def test_show_repeats_the_group(shown: dict[str, Fields]) -> None:
    groups = {one["id"]: one for one in done("groups")["groups"]}
    for address, one in shown.items():
        number = group(address)
        assert one["group"] == (None if number is None else groups[number])
        assert one["iommu"] == link(path(address, "iommu"))


def test_capabilities_agree_with_configuration_space(
    shown: dict[str, Fields], configs: dict[str, bytes]
) -> None:
    for address, raw in configs.items():
        expected = [(number, offset, False) for number, offset in standard_chain(raw)]
        expected += [(number, offset, True) for number, offset in extended_chain(raw)]
        found = [(one["id"], one["offset"], one["extended"]) for one in shown[address]["capabilities"]]
        assert found == expected, address


def test_capabilities_agree_with_lspci(shown: dict[str, Fields], verbose: dict[str, str]) -> None:
    expected = {a: [int(o, 16) for o in _CAPABILITY.findall(text)] for a, text in verbose.items()}
    assert {a: [one["offset"] for one in show["capabilities"]] for a, show in shown.items()} == expected
    assert sum(map(len, expected.values())) > len(expected)


def test_bars_agree_with_lspci(shown: dict[str, Fields], verbose: dict[str, str]) -> None:
    expected = {address: list(map(as_bar, _REGION.finditer(text))) for address, text in verbose.items()}
    without_rom = {a: [bar for bar in show["bars"] if bar["index"] < 6] for a, show in shown.items()}
    assert without_rom == expected
    assert sum(map(len, expected.values())) > len(expected) / 2


def as_bar(region: re.Match[str]) -> Fields:
    return {
        "index": int(region["index"]),
        "start": int(region["start"], 16),
        "size": int(region["size"]) * _UNITS[region["unit"]],
        "type": "io" if region["kind"] == "I/O ports" else f"memory{region['width']}",
        "prefetchable": region["width"] is not None and region["prefetch"] is None,
        "disabled": "[disabled]" in region[0],
    }


def test_bars_agree_with_configuration_space(shown: dict[str, Fields], configs: dict[str, bytes]) -> None:
    """An endpoint's BARs are the registers that are not zero; a 64-bit BAR takes two registers."""
    for address, raw in configs.items():
        if raw[0x0E] & 0x7F == 0:
            words = [int.from_bytes(raw[at : at + 4], "little") for at in range(0x10, 0x28, 4)]
            upper = {index + 1 for index, word in enumerate(words) if word & 7 == 4}
            expected = {index for index, word in enumerate(words) if word and index not in upper}
            assert {bar["index"] for bar in shown[address]["bars"] if bar["index"] < 6} == expected, address


def test_link_agrees_with_sysfs(shown: dict[str, Fields], verbose: dict[str, str]) -> None:
    """A part of the root complex has no link, whatever the kernel's attributes say."""
    names = "current_link_speed", "current_link_width", "max_link_speed", "max_link_width"
    for address, one in shown.items():
        raw = {name: text for name in names if (text := read(path(address, name))) is not None}
        has_link = "Root Complex Integrated Endpoint" not in verbose[address]
        has_speed = any("GT/s" in text for text in raw.values())
        assert one["link"] == (raw if has_link and has_speed else {}), address


def test_downgraded_links_agree_with_lspci(shown: dict[str, Fields], verbose: dict[str, str]) -> None:
    for address, one in shown.items():
        _, _, status = verbose[address].partition("LnkSta:")
        line = status.partition("\n")[0]
        if one["link"] and one["link_downgraded"] is not None:
            assert ("(downgraded)" in line) == bool(one["link_downgraded"]), address


def test_interrupts_and_modules_agree_with_sysfs_and_modprobe(shown: dict[str, Fields]) -> None:
    for address, one in shown.items():
        folder = path(address, "msi_irqs")
        numbers = sorted(map(int, os.listdir(folder))) if os.path.isdir(folder) else []
        assert one["msi_irqs"] == numbers
        assert one["irq"] == (int(read(path(address, "irq")) or "0") or None)
        if one["modules"] is not None and one["device"]["driver"] in ("e1000", "e1000e"):
            assert one["device"]["driver"] in one["modules"]


def test_usage_names_interface_and_disk(shown: dict[str, Fields]) -> None:
    for address, one in shown.items():
        interfaces = os.listdir(path(address, "net")) if os.path.isdir(path(address, "net")) else []
        assert [use["name"] for use in one["usage"] if use["kind"] == "net"] == sorted(interfaces)
        controllers = os.listdir(path(address, "nvme")) if os.path.isdir(path(address, "nvme")) else []
        assert [use["name"] for use in one["usage"] if use["kind"] == "nvme"] == controllers
        assert any(use["kind"] == "block" for use in one["usage"]) == (one["device"]["driver"] == "nvme")


def test_an_unprivileged_user_sees_all_that_the_kernel_shows(
    listed: dict[str, Fields], shown: dict[str, Fields]
) -> None:
    """Every user may read all that list needs; configuration space beyond 64 bytes needs root."""
    seen = vfiotool_as_nobody("list", "--json")
    assert (seen.status, seen.stderr) == (0, "")
    assert {one["address"]: one for one in seen.document["devices"]} == listed
    seen = vfiotool_as_nobody("show", E1000E, "--json")
    assert (seen.status, seen.stderr) == (0, "")
    assert seen.document["capabilities"] is None
    assert seen.document["bars"] == shown[E1000E]["bars"]
    assert {"capabilities"} <= set(seen.document["unavailable"]) <= {"capabilities", "link"}


@pytest.mark.skipif(MACHINE == "amd", reason="machine 'amd' has no NVMe in a subsystem")
def test_vfs_come_and_go(listed: dict[str, Fields]) -> None:
    """VFs stay without a driver: the host's driver would wait for offline controllers."""
    numvfs, autoprobe = path(SUBSYSTEM_NVME, "sriov_numvfs"), path(SUBSYSTEM_NVME, "sriov_drivers_autoprobe")
    vfs = ["0000:01:00.1", "0000:01:00.2"]
    write(autoprobe, "0")
    try:
        write(numvfs, "2")
        links = [path(SUBSYSTEM_NVME, f"virtfn{number}") for number in range(2)]
        await_("the VFs are there", lambda: [link(one) for one in links] == vfs)
        with_vfs = listing()
        said = output("lspci", "-vmm", "-nn", "-D", "-k").strip().split("\n\n")
    finally:
        write(numvfs, "0")
        write(autoprobe, "1")
    assert with_vfs.keys() - listed.keys() == set(vfs)
    assert (with_vfs[SUBSYSTEM_NVME]["vfs"], with_vfs[SUBSYSTEM_NVME]["sriov_numvfs"]) == (vfs, 2)
    lspci = dict(map(as_fields, said))
    for vf in vfs:
        one = with_vfs[vf]
        assert {name: one[name] for name in lspci[vf]} == lspci[vf]
        assert (one["is_vf"], one["physfn"], one["driver"]) == (True, SUBSYSTEM_NVME, None)
    await_("the VFs are gone", lambda: not any(os.path.exists(path(vf)) for vf in vfs))
    assert listing() == listed


def test_an_interface_is_found_by_its_alternative_names() -> None:
    (name,) = os.listdir(path(E1000E, "net"))
    output("ip", "link", "property", "add", "dev", name, "altname", "uplink")
    try:
        (one,) = done("list", "uplink")["devices"]
    finally:
        output("ip", "link", "property", "del", "dev", name, "altname", "uplink")
    assert one["address"] == E1000E
    assert vfiotool("list", "uplink").status == 1


@pytest.mark.skipif(MACHINE != "default", reason="that the kernel goes by ACS's control bits is seen once")
def test_a_port_with_disabled_acs_shares_its_group() -> None:
    """The kernel puts a device below a port with disabled ACS into the port's group."""
    before = output("setpci", "-s", _ROOT_PORT, "ECAP_ACS+6.w").strip()
    former = group(SUBSYSTEM_NVME)
    try:
        output("setpci", "-s", _ROOT_PORT, "ECAP_ACS+6.w=0:000c")  # both redirects
        assert "ReqRedir- CmpltRedir-" in output("lspci", "-vvv", "-s", _ROOT_PORT).partition("ACSCtl:")[2]
        remove(SUBSYSTEM_NVME)
        rescan(SUBSYSTEM_NVME)
        assert former != group(SUBSYSTEM_NVME) == group(_ROOT_PORT)
        (one,) = done("groups", str(group(_ROOT_PORT)))["groups"]
    finally:
        output("setpci", "-s", _ROOT_PORT, f"ECAP_ACS+6.w={before}")
        remove(SUBSYSTEM_NVME)
        rescan(SUBSYSTEM_NVME)
    (line,) = one["why"]
    off = "a root port whose ACS has P2P request redirect, P2P completion redirect disabled, "
    assert line.startswith(f"{SUBSYSTEM_NVME}: behind {_ROOT_PORT}, {off}")
    assert group(SUBSYSTEM_NVME) != group(_ROOT_PORT)


@needs_iommu
def test_why_needs_root() -> None:
    number = str(group(OTHER_E1000E))
    seen = vfiotool_as_nobody("groups", number, "--json")
    (one,) = seen.document["groups"]
    assert (one["why"], one["unavailable"]) == (None, ["why"])


def test_the_advice_of_show_is_what_bind_does() -> None:
    """Each command that is named is planned, or is said to be refused and is."""
    judged = 0
    for device in done("list")["devices"]:
        text = " ".join(vfiotool("show", device["address"]).stdout.split()).partition(" how to free ")[2]
        for command, refused in re.findall(r"'vfiotool (bind [^']*)'( refuses it: )?", text):
            result = vfiotool(*command.split(), "--dry-run")
            assert result.status == (_REFUSED if refused else 0), (text, result)
            judged += 1
    assert judged or MACHINE == "none"
