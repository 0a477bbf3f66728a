"""Checks of the running kernel: its VFIO modules, its lockdown, and the hazards of its era."""

from __future__ import annotations

from collections.abc import Mapping

from vfiotool.host.checks.architecture import Architecture, cpu_fields, detect_architecture
from vfiotool.host.checks.verdict import Verdict
from vfiotool.host.era import Era, detect_era, kernel_release, modules_folder
from vfiotool.host.tree import Tree

LOCKDOWN = "/sys/kernel/security/lockdown"
_SECURITY_MODULES = "/sys/kernel/security/lsm"
_NEEDED = ("vfio", "vfio_pci")
_TYPE1, _SPAPR = "vfio_iommu_type1", "vfio_iommu_spapr_tce"
# Only these of Debian's architectures have a cloud kernel.
_DEBIAN = {
    Architecture.X86: "on Debian 'apt install linux-image-amd64' instead of the cloud kernel, ",
    Architecture.ARM: "on Debian 'apt install linux-image-arm64' instead of the cloud kernel, ",
}


def check_modules(tree: Tree, state_dir: str) -> Verdict:
    """The kernel has vfio, vfio_pci and an IOMMU backend: built in, loaded, or ready to load."""
    folder = modules_folder(tree)
    builtin = module_names(tree.find(f"{folder}/modules.builtin") or "")
    available = module_names(tree.find(f"{folder}/modules.dep") or "")
    states = {
        name: "built in"
        if name in builtin
        else "loaded"
        if tree.exists(f"/sys/module/{name}")
        else "can be loaded"
        if name in available
        else "missing"
        for name in (*_NEEDED, _TYPE1, _SPAPR, "iommufd")
    }
    return judge_modules(
        states,
        has_folder=tree.exists(folder),
        loading_off=tree.find("/proc/sys/kernel/modules_disabled") == "1",
        architecture=detect_architecture(tree, cpu_fields(tree.find("/proc/cpuinfo") or "")),
    )


def judge_modules(
    states: Mapping[str, str], *, has_folder: bool, loading_off: bool, architecture: Architecture | None
) -> Verdict:
    """Judge by the state of each module.

    POWER has an IOMMU backend of its own (drivers/vfio/Kconfig). iommufd can replace type1
    (CONFIG_IOMMUFD_VFIO_CONTAINER).
    """
    backend = _SPAPR if architecture is Architecture.POWER else _TYPE1
    needed = {name: states[name] for name in (*_NEEDED, backend)}
    if needed["vfio"] == "missing":  # a built-in vfio is not listed, but vfio_pci implies it
        needed["vfio"] = needed["vfio_pci"]
    if needed.get(_TYPE1) == "missing" and states["iommufd"] != "missing":
        del needed[_TYPE1]
        needed["iommufd"] = states["iommufd"]
    detail = ", ".join(f"{name}: {state}" for name, state in needed.items())
    if "missing" in needed.values():
        if not has_folder:
            return Verdict(
                False,
                f"the modules of the running kernel are not installed: {detail}",
                "reboot into the installed kernel, or install the modules of the running kernel",
            )
        debian = _DEBIAN.get(architecture, "") if architecture is not None else ""
        return Verdict(
            False,
            detail,
            f"install a kernel with all its modules: {debian}on Ubuntu 'apt install "
            "linux-modules-extra-$(uname -r)'",
        )
    if loading_off and "can be loaded" in needed.values():
        return Verdict(
            False,
            f"{detail}; but module loading is disabled until the next boot",
            "printf 'vfio-pci\\n' > /etc/modules-load.d/vfio.conf, then reboot",
        )
    return Verdict(True, detail)


def module_names(text: str) -> frozenset[str]:
    """Return the names of the modules in a ``modules.dep`` or ``modules.builtin``, with underscores."""
    paths = (line.partition(":")[0] for line in text.splitlines())
    return frozenset(path.rpartition("/")[2].partition(".ko")[0].replace("-", "_") for path in paths)


def check_lockdown(tree: Tree, state_dir: str) -> Verdict:
    """The kernel's lockdown, and the functions that it disables (kernel_lockdown(7))."""
    return judge_lockdown(tree.find(LOCKDOWN), can_say=tree.exists(_SECURITY_MODULES))


def judge_lockdown(text: str | None, *, can_say: bool) -> Verdict:
    """Judge by the mode in brackets; ``can_say`` is True if securityfs is mounted and readable."""
    if text is None:
        if can_say:
            return Verdict(True, "this kernel has no lockdown")
        mount = "mount -t securityfs securityfs /sys/kernel/security"
        return Verdict(None, "securityfs is not mounted, or this user may not read it", mount)
    mode = text.partition("[")[2].partition("]")[0]
    if mode == "none":
        return Verdict(True, "off")
    lost = "configuration space and BARs cannot be written or mapped through sysfs; VFIO works"
    if mode == "integrity":
        return Verdict(True, f"integrity: {lost}")
    if mode == "confidentiality":
        return Verdict(True, f"confidentiality: {lost}, but kernel probes do not")
    return Verdict(None, f"unknown lockdown mode: {text!r}")


def check_era(tree: Tree, state_dir: str) -> Verdict:
    """The kernel refuses a host driver in a group in use; older kernels run into a BUG."""
    return judge_era(detect_era(tree), kernel_release(tree))


def judge_era(era: Era, release: str) -> Verdict:
    """Judge by what kernels of the era do when a host driver binds to a device of a group in use."""
    if era is Era.CDEV:
        return Verdict(True, f"{release} ({era.value}): devices can also be opened without their group")
    if era.has_dma_owner:
        return Verdict(True, f"{release} ({era.value}): the kernel refuses a host driver in a group in use")
    late = "; a group's node can also outlive its last device" if era is Era.DEFERRED_PUT else ""
    return Verdict(
        False,
        f"{release} ({era.value}): binding a host driver in a group in use is a kernel BUG, and the machine "
        f"is lost{late}",
        "boot kernel 5.19 or later; until then change drivers with vfiotool, which refuses this, and do "
        "not load drivers or rescan buses while a group is in use",
    )
