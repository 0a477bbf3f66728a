"""What the running kernel can do: its VFIO modules, its lockdown, and the hazards of its era."""

from __future__ import annotations

from collections.abc import Mapping

from vfiotool.host.checks.verdict import Verdict
from vfiotool.host.era import Era, detect_era, kernel_release, modules_folder
from vfiotool.host.tree import Tree

LOCKDOWN = "/sys/kernel/security/lockdown"
_SECURITY_MODULES = "/sys/kernel/security/lsm"
_NEEDED = ("vfio", "vfio_pci", "vfio_iommu_type1")

_FULL_MODULES = (
    "install the kernel with all of its modules: on Debian 'apt install linux-image-amd64' in place of "
    "the cloud kernel, on Ubuntu 'apt install linux-modules-extra-$(uname -r)'"
)


def check_modules(tree: Tree, state_dir: str) -> Verdict:
    """The kernel has vfio, vfio_pci and an IOMMU backend, loaded, built in or to be loaded."""
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
        for name in (*_NEEDED, "iommufd")
    }
    loading_off = tree.find("/proc/sys/kernel/modules_disabled") == "1"
    return judge_modules(states, has_folder=tree.exists(folder), loading_off=loading_off)


def judge_modules(states: Mapping[str, str], *, has_folder: bool, loading_off: bool) -> Verdict:
    """Judge the modules by their states; iommufd can stand in for type1 (CONFIG_IOMMUFD_VFIO_CONTAINER)."""
    needed = {name: states[name] for name in _NEEDED}
    if needed["vfio"] == "missing":  # built in, it shows nowhere; but without it there is no vfio_pci
        needed["vfio"] = needed["vfio_pci"]
    if needed["vfio_iommu_type1"] == "missing" and states["iommufd"] != "missing":
        del needed["vfio_iommu_type1"]
        needed["iommufd"] = states["iommufd"]
    detail = ", ".join(f"{name}: {state}" for name, state in needed.items())
    if "missing" in needed.values():
        if not has_folder:
            return Verdict(
                False,
                f"the modules of the kernel that runs are not installed: {detail}",
                "boot the kernel that is installed, or install the modules of this one",
            )
        return Verdict(False, detail, _FULL_MODULES)
    if loading_off and "can be loaded" in needed.values():
        return Verdict(
            False,
            f"{detail}; but loading modules is turned off until the next boot",
            "printf 'vfio-pci\\n' > /etc/modules-load.d/vfio.conf, and boot again",
        )
    return Verdict(True, detail)


def module_names(text: str) -> frozenset[str]:
    """Return the names of the modules in a ``modules.dep`` or ``modules.builtin``, with underscores."""
    paths = (line.partition(":")[0] for line in text.splitlines())
    return frozenset(path.rpartition("/")[2].partition(".ko")[0].replace("-", "_") for path in paths)


def check_lockdown(tree: Tree, state_dir: str) -> Verdict:
    """Say what the kernel's lockdown takes away (kernel_lockdown(7))."""
    return judge_lockdown(tree.find(LOCKDOWN), can_say=tree.exists(_SECURITY_MODULES))


def judge_lockdown(text: str | None, *, can_say: bool) -> Verdict:
    """Judge by the mode in brackets; ``can_say`` tells whether the kernel's security folder is mounted."""
    if text is None:
        if can_say:
            return Verdict(True, "this kernel knows no lockdown")
        mount = "mount -t securityfs securityfs /sys/kernel/security"
        return Verdict(None, "the kernel's security folder is not mounted, or not for this user", mount)
    mode = text.partition("[")[2].partition("]")[0]
    if mode == "none":
        return Verdict(True, "off")
    lost = "configuration space and BARs cannot be written or mapped by sysfs; VFIO itself works"
    if mode == "integrity":
        return Verdict(True, f"integrity: {lost}")
    if mode == "confidentiality":
        return Verdict(True, f"confidentiality: {lost}, but no kernel probes")
    return Verdict(None, f"the kernel says {text!r}")


def check_era(tree: Tree, state_dir: str) -> Verdict:
    """Nothing that others do to a group in use makes this kernel fail."""
    return judge_era(detect_era(tree), kernel_release(tree))


def judge_era(era: Era, release: str) -> Verdict:
    """Say what the era's kernels do where a host driver is bound in a group that is in use."""
    if era is Era.CDEV:
        return Verdict(True, f"{release} ({era.value}): devices can also be opened without their group")
    if era.has_dma_owner:
        return Verdict(True, f"{release} ({era.value}): it refuses a host driver in a group that is in use")
    late = ", and a group's node can outlive its last device" if era is Era.DEFERRED_PUT else ""
    return Verdict(
        False,
        f"{release} ({era.value}): to bind a host driver in a group that is in use is a kernel BUG, and "
        f"the machine is lost{late}",
        "boot a kernel from 5.19 on; until then change drivers with vfiotool, which refuses that, and "
        "load no driver and rescan no bus while a group is in use",
    )
