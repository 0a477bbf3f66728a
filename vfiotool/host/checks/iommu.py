"""Checks that the IOMMU is on and remaps interrupts. If not, the remedy names the setting to change.

Every verb takes its hint for a missing IOMMU from here: see ``why_no_group``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vfiotool.host.attributes import GROUPS
from vfiotool.host.checks.architecture import Architecture, cpu_fields, detect_architecture
from vfiotool.host.checks.bootloader import BootLoader, detect_boot_loader
from vfiotool.host.checks.verdict import Verdict
from vfiotool.host.groups import group_ids
from vfiotool.host.tree import Tree

TABLES = "/sys/firmware/acpi/tables"
UNSAFE = tuple(
    f"/sys/module/{module}/parameters/allow_unsafe_interrupts" for module in ("vfio_iommu_type1", "iommufd")
)
"""The parameters by which a module accepts that interrupts are not remapped."""

# The parameters that turn an IOMMU off, and the architectures that know them (kernel-parameters.txt).
_OFF = {
    Architecture.X86: ("intel_iommu=off", "amd_iommu=off", "iommu=off"),
    Architecture.POWER: ("iommu=off",),
}
_NO_REMAPPING = ("intremap=off", "nointremap")
_AMD = ("AuthenticAMD", "HygonGenuine")
_FOR_A_GUEST = {
    Architecture.X86: "; with QEMU: -machine q35,kernel-irqchip=split -device "
    "intel-iommu,intremap=on,caching-mode=on",
    Architecture.ARM: "; with QEMU: -machine virt,iommu=smmuv3",
}
_VT_D, _AMD_VI = "turn on 'VT-d'", "turn on 'IOMMU' or 'AMD-Vi'"
_FIRMWARE = "systemctl reboot --firmware-setup, then "
_FROM_LOG = "dmesg | grep -iE 'iommu|smmu' shows what the kernel found"
_DMI = "/sys/class/dmi/id/sys_vendor"
_HYPERVISOR = "/sys/hypervisor/type"
_COMPATIBLE = "/sys/firmware/devicetree/base/compatible"
_ACCEPT = (
    "at the cost of isolation (each device that VFIO opens, and who drives it, can then raise any interrupt "
    "of the machine): echo 'options vfio_iommu_type1 allow_unsafe_interrupts=1' > "
    "/etc/modprobe.d/vfio-interrupts.conf, then reload the module"
)


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about the IOMMU that the kernel and the firmware report.

    ``has_group_folder`` is False if the files of another machine do not have the folder of the groups.
    ``tables`` are the names of the ACPI tables, ``None`` if they are not in sight; DMAR, IVRS, IORT and VIOT
    describe IOMMUs. ``architecture`` is ``None`` if it is unknown; ``platform`` is that of POWER. ``chips``
    are the interrupt chips in use; on x86, the names of chips behind interrupt remapping begin with ``IR-``.
    """

    groups: int
    has_group_folder: bool
    units: int
    tables: frozenset[str] | None
    parameters: tuple[str, ...]
    architecture: Architecture | None
    platform: str
    vendor: str
    is_guest: bool
    is_on_xen: bool
    chips: frozenset[str]
    accepts_unsafe: bool
    loader: BootLoader


def read_facts(tree: Tree) -> Facts:
    """Read the facts; none of them needs root."""
    cpu = cpu_fields(tree.find("/proc/cpuinfo") or "")
    real = [n for n in group_ids(tree) if tree.find(f"{GROUPS}/{n}/name") != "vfio-noiommu"]
    return Facts(
        groups=len(real),
        has_group_folder=tree.is_complete or tree.exists(GROUPS),
        units=len(tree.find_names("/sys/class/iommu")),
        tables=_tables(tree),
        parameters=tuple((tree.find("/proc/cmdline") or "").split()),
        architecture=detect_architecture(tree, cpu),
        platform=cpu.get("platform", ""),
        vendor=cpu.get("vendor_id", ""),
        is_guest=_is_guest(tree, cpu),
        is_on_xen=tree.find(_HYPERVISOR) == "xen",
        chips=interrupt_chips(tree.find("/proc/interrupts") or ""),
        accepts_unsafe=tree.find(UNSAFE[0]) == "Y",
        loader=detect_boot_loader(tree),
    )


def check_iommu(tree: Tree, state_dir: str) -> Verdict:
    """The kernel has IOMMU groups."""
    return judge_iommu(read_facts(tree))


def check_remapping(tree: Tree, state_dir: str) -> Verdict:
    """Interrupts are remapped, so that a device cannot forge interrupts of another."""
    return judge_remapping(read_facts(tree))


def judge_iommu(facts: Facts) -> Verdict:
    """Judge whether the IOMMU is on; if not, the remedy turns it on on this machine."""
    if facts.groups:
        return Verdict(True, f"on: {facts.groups} groups, {facts.units} IOMMUs")
    if not facts.has_group_folder:
        return Verdict(None, f"this copy of a machine does not show its IOMMU groups: it has no {GROUPS}")
    if facts.is_on_xen:
        return Verdict(
            False,
            "Xen keeps the IOMMU to itself, from its control domain, too",
            "boot this kernel without Xen, or hand devices to guests with Xen's own tools",
        )
    for parameter in () if facts.architecture is None else _OFF.get(facts.architecture, ()):
        if parameter in facts.parameters:
            return Verdict(
                False,
                f"off by the kernel parameter {parameter}",
                f"{facts.loader.to_remove(parameter)}; then reboot",
            )
    if facts.units:
        return Verdict(
            False,
            "the kernel has an IOMMU, and no device has a group yet",
            "load the drivers of the devices: with a device tree, a device gets its group when a driver "
            "probes it",
        )
    if "VIOT" in (facts.tables or ()):
        return Verdict(False, "the virtio-iommu driver is not loaded", "modprobe virtio_iommu")
    if facts.is_guest and facts.architecture not in _ALWAYS_ON and not _described(facts):
        how = _FOR_A_GUEST.get(facts.architecture, "") if facts.architecture else ""
        return Verdict(
            False,
            "this virtual machine has no IOMMU",
            f"add an IOMMU to this virtual machine on its host{how}",
        )
    return _judge_architecture(facts)


def why_no_group(tree: Tree) -> str:
    """Return why a device is in no IOMMU group, and what to do, as a hint of any verb."""
    verdict = check_iommu(tree, "")
    if verdict.ok:
        return "the IOMMU does not cover it, or gives it a group only when a driver has probed it"
    return verdict.detail if verdict.remedy is None else f"{verdict.detail}: {verdict.remedy}"


def judge_remapping(facts: Facts) -> Verdict:
    """Judge whether interrupts are remapped, by the interrupt chips in use."""
    if any(chip.startswith("IR-") for chip in facts.chips):
        return Verdict(True, "the IOMMU remaps interrupts")
    if any(chip.startswith("ITS-") for chip in facts.chips):
        return Verdict(True, "the GIC's interrupt translation service (ITS) remaps interrupts")
    if facts.groups and facts.architecture is Architecture.S390:  # arch_is_isolated_msi() in asm/msi.h
        return Verdict(True, "the hardware isolates the interrupts of each PCI function")
    if not facts.groups and facts.architecture is Architecture.X86:
        found = judge_iommu(facts)
        said = "interrupts are not remapped: there is no IOMMU" if found.ok is False else found.detail
        return Verdict(found.ok, said, found.remedy)
    if not any("IO-APIC" in chip for chip in facts.chips):
        return Verdict(None, "this kernel does not show how it delivers interrupts")
    detail = "interrupts are not remapped: a device could forge interrupts"
    if facts.accepts_unsafe:
        detail += "; vfio_iommu_type1 accepts that (allow_unsafe_interrupts=1)"
    return Verdict(False, detail, _how_to_remap(facts))


def interrupt_chips(interrupts: str) -> frozenset[str]:
    """Return the interrupt chips in ``/proc/interrupts``: the word after the counters of each line."""
    chips = set()
    for line in interrupts.splitlines():
        number, _, rest = line.partition(":")
        words = [word for word in rest.split() if not word.isdecimal()]
        if number.strip().isdecimal() and words:
            chips.add(words[0])
    return frozenset(chips)


def _how_to_remap(facts: Facts) -> str:
    for parameter in _NO_REMAPPING:
        if parameter in facts.parameters:
            return f"{facts.loader.to_remove(parameter)}; then reboot"
    if "VIOT" in (facts.tables or ()):
        return f"virtio-iommu cannot remap interrupts; {_ACCEPT}"
    return f"turn on interrupt remapping (or x2APIC) in the firmware setup; or, {_ACCEPT}"


def _tables(tree: Tree) -> frozenset[str] | None:
    return frozenset(tree.find_names(TABLES)) if tree.exists(TABLES) else None


def _is_guest(tree: Tree, cpu: Mapping[str, str]) -> bool:
    """Return True if a hypervisor shows itself: on x86 by a flag, elsewhere by the firmware's names."""
    named = f"{tree.find(_DMI) or ''} {cpu.get('machine', '')}".lower()
    return (
        "hypervisor" in cpu.get("flags", "").split()
        or "qemu" in named
        or "linux,dummy-virt" in (tree.find(_COMPATIBLE) or "")
    )


def _described(facts: Facts) -> bool:
    """Return True if the firmware describes an IOMMU of the processor's architecture."""
    return bool((facts.tables or frozenset()) & {"DMAR", "IVRS", "RIMT"})


def _judge_architecture(facts: Facts) -> Verdict:
    if facts.architecture is None and not _described(facts):
        return Verdict(
            False, "the kernel uses no IOMMU, and the architecture of this machine is unknown", _FROM_LOG
        )
    return _JUDGES[facts.architecture or Architecture.X86](facts)


def _judge_x86(facts: Facts) -> Verdict:
    if facts.tables is None:
        return Verdict(
            False,
            f"the kernel uses no IOMMU, and the firmware's tables ({TABLES}) are not in sight",
            _remedy_x86(facts),
        )
    if "IVRS" in facts.tables or (facts.vendor in _AMD and "DMAR" not in facts.tables):
        return _judge_amd(facts)
    if facts.vendor or "DMAR" in facts.tables:
        return _judge_intel(facts)
    return Verdict(False, "the firmware describes no IOMMU (no DMAR or IVRS table)", _remedy_x86(facts))


def _remedy_x86(facts: Facts) -> str:
    """Return the remedy if the processor's vendor or the firmware's tables are unknown."""
    if facts.vendor in _AMD:
        return f"{_FIRMWARE}{_AMD_VI} if it is off"
    add = facts.loader.to_add("intel_iommu=on")
    if facts.vendor:
        return f"{add}; then {_FIRMWARE}{_VT_D} if it is off"
    return f"{_FIRMWARE}{_VT_D} (Intel), or {_AMD_VI} (AMD); on Intel first: {add}"


def _judge_amd(facts: Facts) -> Verdict:
    if "IVRS" in (facts.tables or ()):
        return Verdict(
            False,
            "the firmware describes AMD-Vi (IVRS), but the kernel does not use it",
            "dmesg | grep -iE 'AMD-Vi|IVRS' shows why",
        )
    return Verdict(False, "the firmware describes no AMD-Vi (no IVRS table)", f"{_FIRMWARE}{_AMD_VI}")


def _judge_intel(facts: Facts) -> Verdict:
    asked = any(p.startswith("intel_iommu=on") for p in facts.parameters)
    add = facts.loader.to_add("intel_iommu=on")
    if "DMAR" not in (facts.tables or ()):
        setup = f"{_FIRMWARE}{_VT_D}"
        remedy = setup if asked else f"{add}; then {setup}"
        return Verdict(False, "the firmware describes no VT-d (no DMAR table)", remedy)
    if asked:
        return Verdict(
            False, "the kernel does not use VT-d despite intel_iommu=on", "dmesg | grep DMAR shows why"
        )
    return Verdict(
        False,
        "the firmware describes VT-d (DMAR), but the kernel lacks the parameter intel_iommu=on",
        f"{add}; then reboot",
    )


def _judge_arm(facts: Facts) -> Verdict:
    """The IORT table or the device tree describes an SMMU; an IORT without one is usual, too."""
    where = "the firmware has no IORT table that could describe one"
    if facts.tables is None:
        where = "its device tree describes none, or the driver (arm-smmu, arm-smmu-v3) is missing"
    elif "IORT" in facts.tables:
        where = "its IORT table describes none, or the driver (arm-smmu, arm-smmu-v3) is missing"
    return Verdict(
        False,
        f"the kernel uses no SMMU: {where}",
        f"turn on the SMMU in the firmware setup, if it has that setting; {_FROM_LOG}",
    )


def _judge_power(facts: Facts) -> Verdict:
    if facts.platform not in ("PowerNV", "pSeries"):
        return Verdict(False, "the kernel uses no IOMMU", _FROM_LOG)
    return Verdict(
        False,
        f"the kernel has no IOMMU groups, though the IOMMU of {facts.platform} is always on",
        "use a kernel with CONFIG_SPAPR_TCE_IOMMU, if the machine has PCI devices",
    )


def _judge_s390(facts: Facts) -> Verdict:
    """Source: Documentation/arch/s390/pci.rst. Each PCI function comes with its IOMMU."""
    if "pci=off" in facts.parameters:
        return Verdict(
            False,
            "PCI is off by the kernel parameter pci=off",
            f"{facts.loader.to_remove('pci=off')}; then reboot",
        )
    return Verdict(
        False,
        "no PCI function is configured: on s390 each function has an IOMMU, which is always on",
        "give this system a PCI function, and configure it: echo 1 > /sys/bus/pci/slots/FUNCTION/power",
    )


def _judge_riscv(facts: Facts) -> Verdict:
    return Verdict(
        False,
        "the kernel uses no IOMMU: the firmware describes none, or the driver is missing "
        "(CONFIG_RISCV_IOMMU, since Linux 6.13)",
        _FROM_LOG,
    )


def _judge_loongarch(facts: Facts) -> Verdict:
    return Verdict(
        False, "the kernel uses no IOMMU: mainline Linux up to 6.12 has no driver for LoongArch", _FROM_LOG
    )


_ALWAYS_ON = (Architecture.POWER, Architecture.S390)
_JUDGES: Mapping[Architecture, Callable[[Facts], Verdict]] = {
    Architecture.X86: _judge_x86,
    Architecture.ARM: _judge_arm,
    Architecture.POWER: _judge_power,
    Architecture.S390: _judge_s390,
    Architecture.RISCV: _judge_riscv,
    Architecture.LOONGARCH: _judge_loongarch,
}
