"""Checks that the IOMMU is on and remaps interrupts. If not, the remedy names the setting to change."""

from __future__ import annotations

from dataclasses import dataclass

from vfiotool.host.checks.bootloader import BootLoader, detect_boot_loader
from vfiotool.host.checks.verdict import Verdict
from vfiotool.host.groups import GROUPS, group_ids
from vfiotool.host.tree import Tree

TABLES = "/sys/firmware/acpi/tables"
UNSAFE = tuple(
    f"/sys/module/{module}/parameters/allow_unsafe_interrupts" for module in ("vfio_iommu_type1", "iommufd")
)
"""The parameters by which a module accepts that interrupts are not remapped."""

_OFF = ("intel_iommu=off", "amd_iommu=off", "iommu=off")
_NO_REMAPPING = ("intremap=off", "nointremap")
_AMD = ("AuthenticAMD", "HygonGenuine")
_FOR_A_GUEST = (
    "add an IOMMU to this virtual machine on its host; with QEMU: -machine "
    "q35,kernel-irqchip=split -device intel-iommu,intremap=on,caching-mode=on"
)
_ACCEPT = (
    "at the cost of isolation (each device that VFIO opens, and who drives it, can then raise any interrupt "
    "of the machine): echo 'options vfio_iommu_type1 allow_unsafe_interrupts=1' > "
    "/etc/modprobe.d/vfio-interrupts.conf, then reload the module"
)


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about the IOMMU that the kernel and the firmware report.

    ``tables`` are the names of the ACPI tables; DMAR, IVRS and VIOT describe IOMMUs. ``chips`` are the
    interrupt chips in use; on x86, the names of chips behind interrupt remapping begin with ``IR-``.
    """

    groups: int
    units: int
    tables: frozenset[str]
    parameters: tuple[str, ...]
    vendor: str
    is_guest: bool
    chips: frozenset[str]
    accepts_unsafe: bool
    loader: BootLoader


def read_facts(tree: Tree) -> Facts:
    """Read the facts; none of them needs root."""
    cpu = _cpu(tree.find("/proc/cpuinfo") or "")
    real = [n for n in group_ids(tree) if tree.find(f"{GROUPS}/{n}/name") != "vfio-noiommu"]
    return Facts(
        groups=len(real),
        units=len(tree.find_names("/sys/class/iommu")),
        tables=frozenset(tree.find_names(TABLES)),
        parameters=tuple((tree.find("/proc/cmdline") or "").split()),
        vendor=cpu.get("vendor_id", ""),
        is_guest="hypervisor" in cpu.get("flags", "").split(),
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
    for parameter in _OFF:
        if parameter in facts.parameters:
            return Verdict(
                False,
                f"off by the kernel parameter {parameter}",
                f"{facts.loader.to_remove(parameter)}; then reboot",
            )
    if facts.is_guest and not facts.tables & {"DMAR", "IVRS", "VIOT"}:
        return Verdict(False, "this virtual machine has no IOMMU", _FOR_A_GUEST)
    if "VIOT" in facts.tables:
        return Verdict(False, "the virtio-iommu driver is not loaded", "modprobe virtio_iommu")
    if facts.vendor in _AMD and "DMAR" not in facts.tables:
        return _judge_amd(facts)
    return _judge_intel(facts) if facts.vendor or "DMAR" in facts.tables else _judge_other(facts)


def judge_remapping(facts: Facts) -> Verdict:
    """Judge whether interrupts are remapped, by the interrupt chips in use."""
    if any(chip.startswith("IR-") for chip in facts.chips):
        return Verdict(True, "the IOMMU remaps interrupts")
    if any(chip.startswith("ITS-") for chip in facts.chips):
        return Verdict(True, "the GIC's interrupt translation service (ITS) remaps interrupts")
    if not facts.groups:
        return Verdict(False, "interrupts are not remapped: there is no IOMMU", judge_iommu(facts).remedy)
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
    if "VIOT" in facts.tables:
        return f"virtio-iommu cannot remap interrupts; {_ACCEPT}"
    return f"turn on interrupt remapping (or x2APIC) in the firmware setup; or, {_ACCEPT}"


def _judge_amd(facts: Facts) -> Verdict:
    if "IVRS" in facts.tables:
        return Verdict(
            False,
            "the firmware describes AMD-Vi (IVRS), but the kernel does not use it",
            "dmesg | grep -iE 'AMD-Vi|IVRS' shows why",
        )
    return Verdict(
        False,
        "the firmware describes no AMD-Vi (no IVRS table)",
        "systemctl reboot --firmware-setup, then turn on 'IOMMU' or 'AMD-Vi'",
    )


def _judge_intel(facts: Facts) -> Verdict:
    asked = any(p.startswith("intel_iommu=on") for p in facts.parameters)
    add = facts.loader.to_add("intel_iommu=on")
    if "DMAR" not in facts.tables:
        setup = "systemctl reboot --firmware-setup, then turn on 'VT-d'"
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


def _judge_other(facts: Facts) -> Verdict:
    return Verdict(
        False,
        "the kernel found no IOMMU",
        "systemctl reboot --firmware-setup, then turn on 'IOMMU' or 'SMMU'; dmesg | grep -i iommu shows more",
    )


def _cpu(text: str) -> dict[str, str]:
    """Return the fields of the first processor."""
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
