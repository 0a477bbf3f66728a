from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.conftest import Run
from vfiotool.host.checks.architecture import Architecture
from vfiotool.host.checks.bootloader import LOADER_INFO, detect_boot_loader
from vfiotool.host.checks.groups import judge_nodes
from vfiotool.host.checks.iommu import (
    Facts,
    interrupt_chips,
    judge_iommu,
    judge_remapping,
    read_facts,
)
from vfiotool.host.checks.kernel import judge_era, judge_lockdown, judge_modules, module_names
from vfiotool.host.checks.leftovers import judge_leftovers
from vfiotool.host.checks.memory import judge_hugepages, judge_memlock
from vfiotool.host.doctor import CHECKS, Check, examine
from vfiotool.host.era import Era
from vfiotool.testing import FakeHost

EDU, NIC, SISTER = "0000:00:10.0", "0000:00:12.0", "0000:00:12.1"
GIB = 1 << 30


@pytest.fixture
def ready(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """A machine with nothing to complain of."""
    host.add_driver("vfio-pci")
    host.add_device(EDU, group=5, driver="vfio-pci")
    os.chmod(host.tree.path("/dev/vfio/5"), 0o600)
    host.put("/proc/cpuinfo", "processor : 0\nvendor_id : GenuineIntel\nflags : fpu\n\nprocessor : 1")
    host.put("/proc/interrupts", "  CPU0\n  2:  1  0  IR-IO-APIC  2-edge  timer\nNMI:  0  Non-maskable")
    host.put("/proc/cmdline", "quiet intel_iommu=on")
    host.put("/proc/meminfo", "MemTotal:  8388608 kB")
    host.put("/proc/self/status", "CapEff:\t000001ffffffffff")
    host.put("/sys/kernel/security/lockdown", "[none] integrity confidentiality")
    host.put("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
    modules = "kernel/vfio.ko.xz:\nkernel/vfio-pci.ko: kernel/vfio.ko\nkernel/vfio_iommu_type1.ko:"
    host.put("/lib/modules/6.12.0/modules.dep", modules)
    return host


def checks(host: FakeHost) -> dict[str, Check]:
    return {check.name: check for check in examine(host.tree, state_dir=host.state_dir)}


def test_a_machine_that_is_ready(vfiotool: Run, ready: FakeHost) -> None:
    result = vfiotool("doctor", "--json")
    document = result.document
    assert (document["schema"], [one["name"] for one in document["checks"]]) == (
        "vfiotool.doctor/1",
        list(CHECKS),
    )
    assert [one for one in document["checks"] if one["ok"] is not True] == []
    assert set(document["checks"][0]) == {"name", "ok", "detail", "remedy"}
    assert result.status == 0
    assert vfiotool("doctor").stdout.count("ok ") == len(CHECKS)


def test_a_check_that_fails_has_a_remedy_and_a_status(vfiotool: Run, ready: FakeHost) -> None:
    os.chmod(ready.tree.path("/dev/vfio/5"), 0o602)  # noqa: S103 - the check must find this mode
    result = vfiotool("doctor")
    assert result.status == 1
    assert "FAIL  nodes " in result.stdout
    assert "chmod o-rwx /dev/vfio/5\n" in result.stdout


def test_an_undecided_check_is_not_a_failure(host: FakeHost) -> None:
    """The host has only a release: no /proc, no modules, no securityfs."""
    found = checks(host)
    unknown = {name for name, check in found.items() if check.ok is None}
    assert unknown == {"lockdown", "memlock", "hugepages", "interrupt-remapping"}
    assert found["memlock"].detail == "a limit of running processes: run doctor on the machine itself"


def test_malformed_files_leave_a_check_undecided(ready: FakeHost) -> None:
    """Text in place of a number, a directory in place of a file, a release with a path in it."""
    ready.put("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "many")
    ready.remove("/proc/interrupts")
    os.mkdir(ready.tree.path("/proc/interrupts"))
    ready.put("/proc/sys/kernel/osrelease", "6.12; rm /../../../etc\x1b[2J")
    found = checks(ready)
    unknown = {name for name, check in found.items() if check.ok is None}
    assert unknown == {
        "iommu", "interrupt-remapping", "modules", "kernel", "memlock", "hugepages", "power"
    }  # fmt: skip
    assert not any("rm " in (check.remedy or "") for check in found.values())


def test_control_characters_do_not_reach_the_terminal(vfiotool: Run, ready: FakeHost) -> None:
    ready.put("/proc/sys/kernel/osrelease", "6.12\x1b[2J")
    assert "\x1b" not in vfiotool("doctor").stdout


def facts(host: FakeHost, **known: object) -> Facts:
    plain = Facts(
        groups=0,
        has_group_folder=True,
        units=0,
        tables=frozenset({"APIC"}),
        parameters=(),
        architecture=Architecture.X86,
        platform="",
        vendor="GenuineIntel",
        is_guest=False,
        is_on_xen=False,
        chips=frozenset({"IO-APIC"}),
        accepts_unsafe=False,
        loader=detect_boot_loader(host.tree),
    )
    return replace(plain, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("known", "ok", "words"),
    [
        ({"groups": 3}, True, "3 groups"),
        ({}, False, "turn on 'VT-d'"),
        ({"tables": frozenset({"DMAR"})}, False, "add intel_iommu=on to the kernel command line"),
        ({"tables": frozenset({"DMAR"}), "parameters": ("intel_iommu=on",)}, False, "dmesg | grep DMAR"),
        ({"tables": frozenset({"DMAR"}), "vendor": "AuthenticAMD"}, False, "add intel_iommu=on"),
        ({"parameters": ("amd_iommu=off",), "vendor": "AuthenticAMD"}, False, "remove amd_iommu=off from"),
        ({"vendor": "AuthenticAMD"}, False, "turn on 'IOMMU' or 'AMD-Vi'"),
        ({"vendor": "HygonGenuine", "tables": frozenset({"IVRS"})}, False, "dmesg | grep -iE 'AMD-Vi"),
        ({"is_guest": True}, False, "-device intel-iommu"),
        ({"is_guest": True, "tables": frozenset({"VIOT"})}, False, "modprobe virtio_iommu"),
        ({"is_on_xen": True, "is_guest": True}, False, "without Xen"),
        ({"vendor": ""}, False, "turn on 'VT-d' (Intel), or turn on 'IOMMU' or 'AMD-Vi' (AMD)"),
        ({"vendor": "", "tables": frozenset({"IVRS"})}, False, "describes AMD-Vi"),
        ({"tables": None}, False, "not in sight"),
        ({"tables": None, "vendor": "AuthenticAMD"}, False, "'AMD-Vi' if it is off"),
        ({"has_group_folder": False}, None, "does not show its IOMMU groups"),
        ({"units": 1}, False, "no device has a group yet"),
        ({"architecture": Architecture.ARM, "tables": None}, False, "device tree describes none"),
        (
            {"architecture": Architecture.ARM, "tables": frozenset({"IORT"})},
            False,
            "IORT table describes none",
        ),
        ({"architecture": Architecture.ARM}, False, "no IORT table"),
        ({"architecture": Architecture.ARM, "is_guest": True}, False, "iommu=smmuv3"),
        ({"architecture": Architecture.ARM, "parameters": ("iommu=off",)}, False, "no IORT table"),
        ({"architecture": Architecture.POWER, "platform": "PowerNV"}, False, "is always on"),
        ({"architecture": Architecture.POWER, "platform": "pSeries", "is_guest": True}, False, "SPAPR_TCE"),
        ({"architecture": Architecture.POWER, "platform": "QEMU e500"}, False, "uses no IOMMU"),
        ({"architecture": Architecture.POWER, "parameters": ("iommu=off",)}, False, "remove iommu=off from"),
        ({"architecture": Architecture.S390, "vendor": "IBM/S390"}, False, "no PCI function is configured"),
        ({"architecture": Architecture.S390, "parameters": ("pci=off",)}, False, "remove pci=off from"),
        ({"architecture": Architecture.RISCV}, False, "CONFIG_RISCV_IOMMU"),
        ({"architecture": Architecture.LOONGARCH}, False, "LoongArch"),
        ({"architecture": None, "vendor": ""}, False, "architecture of this machine is unknown"),
        ({"architecture": None, "vendor": "", "tables": frozenset({"DMAR"})}, False, "add intel_iommu=on"),
    ],
)
def test_the_verdict_and_the_remedy_on_the_iommu(
    host: FakeHost, known: dict[str, object], ok: bool, words: str
) -> None:
    verdict = judge_iommu(facts(host, **known))
    assert verdict.ok is ok
    said = f"{verdict.detail} {verdict.remedy}"
    assert words in said
    if known.get("architecture", Architecture.X86) not in (Architecture.X86, None):
        assert not re.search("VT-d|AMD-Vi|intel|DMAR|IVRS", said)
    assert (verdict.remedy is None) == (ok is not False)


CPUINFO = {
    "s390": ("vendor_id       : IBM/S390\n# processors    : 17\n", Architecture.S390),
    "x86": ("processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu\n\n", Architecture.X86),
    "zhaoxin": ("vendor_id\t: CentaurHauls\n", Architecture.X86),
    "arm64": ("processor\t: 0\nFeatures\t: fp\nCPU implementer\t: 0x41\n\n", Architecture.ARM),
    "power": (
        "processor\t: 0\ncpu\t\t: POWER9\n\ntimebase\t: 512000000\nplatform\t: PowerNV\n",
        Architecture.POWER,
    ),
    "riscv": ("processor\t: 0\nhart\t\t: 0\nisa\t\t: rv64imafdc\n\n", Architecture.RISCV),
    "loongarch": ("system type : generic\n\nCPU Family\t: Loongson-64bit\n", Architecture.LOONGARCH),
    "empty": ("", None),
    "other": ("cpu\t\t: alien\n", None),
}


@pytest.mark.parametrize("name", CPUINFO)
def test_the_architecture_by_the_form_of_cpuinfo(host: FakeHost, name: str) -> None:
    text, expected = CPUINFO[name]
    host.put("/proc/cpuinfo", text)
    assert read_facts(host.tree).architecture is expected


@pytest.mark.parametrize(
    ("path", "text", "guest", "xen"),
    [
        ("/proc/cpuinfo", "vendor_id : GenuineIntel\nflags : fpu hypervisor", True, False),
        ("/proc/cpuinfo", "vendor_id : GenuineIntel\nflags : fpu", False, False),
        ("/proc/cpuinfo", "timebase : 1\nmachine : CHRP IBM pSeries (emulated by qemu)", True, False),
        ("/sys/class/dmi/id/sys_vendor", "QEMU", True, False),
        ("/sys/class/dmi/id/sys_vendor", "Dell Inc.", False, False),
        ("/sys/firmware/devicetree/base/compatible", "linux,dummy-virt\0", True, False),
        ("/sys/hypervisor/type", "xen", False, True),
    ],
)
def test_what_shows_a_hypervisor(host: FakeHost, path: str, text: str, guest: bool, xen: bool) -> None:
    host.put(path, text)
    found = read_facts(host.tree)
    assert (found.is_guest, found.is_on_xen) == (guest, xen)


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("/proc/sys/kernel/arch", "aarch64", Architecture.ARM),
        ("/proc/sys/kernel/arch", "s390x", Architecture.S390),
        ("/proc/sys/kernel/arch", "ppc64le", Architecture.POWER),
        ("/proc/sys/kernel/arch", "mips64", None),
        ("/proc/version", "Linux version 6.1 (d@x) (x86_64-linux-gnu-gcc-12 (Debian) 12)", Architecture.X86),
        ("/proc/version", "Linux version 6.1 (d@x) (powerpc64le-linux-gnu-gcc 12)", Architecture.POWER),
        ("/proc/version", "Linux version 6.1 (d@x) (gcc (Debian 12.2.0) 12.2.0)", None),
    ],
)
def test_the_architecture_by_the_kernels_own_word(
    host: FakeHost, path: str, text: str, expected: Architecture | None
) -> None:
    host.put(path, text)
    assert read_facts(host.tree).architecture is expected


@pytest.mark.parametrize(
    ("known", "ok", "words"),
    [
        ({"chips": frozenset({"IR-IO-APIC", "DMAR-MSI"})}, True, "IOMMU remaps"),
        ({"chips": frozenset({"ITS-MSI", "GICv3"}), "architecture": Architecture.ARM}, True, "GIC"),
        ({"chips": frozenset({"GICv2"}), "architecture": Architecture.ARM}, None, "does not show"),
        ({"chips": frozenset({"GICv2"}), "architecture": Architecture.ARM, "groups": 0}, None, "not show"),
        ({"chips": frozenset(), "architecture": Architecture.S390}, True, "each PCI function"),
        ({}, False, "allow_unsafe_interrupts=1"),
        ({"accepts_unsafe": True}, False, "accepts that"),
        ({"parameters": ("intremap=off",)}, False, "remove intremap=off"),
        ({"tables": frozenset({"VIOT"})}, False, "virtio-iommu cannot"),
        ({"groups": 0}, False, "turn on 'VT-d'"),
    ],
)
def test_the_verdict_and_the_remedy_on_interrupt_remapping(
    host: FakeHost, known: dict[str, object], ok: bool | None, words: str
) -> None:
    verdict = judge_remapping(facts(host, **{"groups": 3, **known}))
    assert verdict.ok is ok
    assert words in f"{verdict.detail} {verdict.remedy}"


def test_interrupt_chips_are_read_from_proc_interrupts() -> None:
    lines = [
        "       CPU0   CPU1",
        "  0:  5  9  IR-IO-APIC  2-edge  IR-x",
        " 24:  1  2  PCI-MSI-0000:00:02.0  0-edge  eth0",
        "NMI:  0  0  Non-maskable interrupts",
        "ERR:  0",
        "  9:",
    ]
    assert interrupt_chips("\n".join(lines)) == {
        "IR-IO-APIC",
        "PCI-MSI-0000:00:02.0",
    }


LOADERS = {
    "GRUB of Debian": (["/etc/default/grub", "/usr/sbin/update-grub"], "update-grub"),
    "GRUB elsewhere": (
        ["/etc/default/grub", "/usr/bin/grub-mkconfig"],
        "grub-mkconfig -o /boot/grub/grub.cfg",
    ),
    "GRUB 2 by name": (
        ["/etc/default/grub", "/usr/sbin/grub2-mkconfig", "/boot/grub2/grub.cfg"],
        "grub2-mkconfig -o /boot/grub2/grub.cfg",
    ),
    "Fedora": (["/etc/default/grub", "/usr/sbin/grubby"], "grubby --update-kernel=ALL --args=p=1"),
    "Fedora, removing": (["/usr/sbin/grubby"], "grubby --update-kernel=ALL --remove-args=q=2"),
    "Silverblue": (["/run/ostree-booted", "/etc/default/grub"], "rpm-ostree kargs --append=p=1"),
    "Pop!_OS": (["/etc/kernelstub/configuration"], "kernelstub --add-options p=1"),
    "Proxmox": (["/etc/kernel/proxmox-boot-uuids", "/etc/kernel/cmdline"], "proxmox-boot-tool refresh"),
    "systemd-boot": (["/etc/kernel/cmdline"], "kernel-install add 6 /boot/vmlinuz-6"),
    "systemd-boot, image with modules": (
        ["/etc/kernel/cmdline", "/lib/modules/6.12.0/vmlinuz"],
        "kernel-install add 6 /lib/modules/6/vmlinuz",
    ),
    "Arch": (["/etc/kernel/cmdline", "/etc/mkinitcpio.d/linux.preset"], "mkinitcpio -P"),
    "systemd-boot's entries": (["/boot/loader/entries/a.conf"], ""),
}


@pytest.mark.parametrize("name", LOADERS)
def test_the_commands_for_a_boot_loader_change_the_command_line(
    host: FakeHost, tmp_path: Path, name: str
) -> None:
    """The commands run on the fake host's files; stubs of the boot loader's programs record their calls."""
    files, called = LOADERS[name]
    for file in files:
        host.put(file, "")
    for file in ("/etc/kernel/cmdline", "/etc/default/grub", "/boot/loader/entries/a.conf"):
        if host.tree.exists(file):
            host.put(file, before(file, "q=2"))
    loader = detect_boot_loader(host.tree)
    calls = [
        run_with_stubs(host, tmp_path, command) for command in (loader.to_add("p=1"), loader.to_remove("q=2"))
    ]
    assert called in [*calls[0], *calls[1], ""]
    for file in ("/etc/kernel/cmdline", "/boot/loader/entries/a.conf"):
        if file in files:
            assert host.tree.read(file) == before(file, "p=1").replace("quiet p=1 q=20", "quiet q=20 p=1")
    if "update-grub" in called or "mkconfig" in called:
        script = f". {host.tree.path('/etc/default/grub')}; echo $GRUB_CMDLINE_LINUX"
        said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
        assert said == "quiet q=20 p=1\n"


def before(file: str, parameter: str) -> str:
    """The content of a file, with a parameter between two parameters."""
    line = f"quiet {parameter} q=20"
    if file.endswith("grub"):
        return f'GRUB_TIMEOUT=1\nGRUB_CMDLINE_LINUX="{line}"'
    return line if file.endswith("cmdline") else f"title a\noptions {line}"


def run_with_stubs(host: FakeHost, tmp_path: Path, command: str) -> list[str]:
    programs = (
        "update-grub grub-mkconfig grub2-mkconfig grubby rpm-ostree kernelstub mkinitcpio kernel-install"
    )
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir(exist_ok=True)
    for program in (*programs.split(), "proxmox-boot-tool"):
        (folder / program).write_text(f'#!/bin/sh\necho "{program} $*" | sed "s/ $//" >> {calls}\n')
        (folder / program).chmod(0o755)
    (folder / "uname").write_text("#!/bin/sh\necho 6\n")
    (folder / "uname").chmod(0o755)
    calls.write_text("")
    for file in ("/etc/kernel/cmdline", "/etc/default/grub", "/boot/loader/entries/"):
        command = command.replace(f" {file}", f" {host.tree.path(file)}")
    path = f"{folder}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", command], check=True, env={**os.environ, "PATH": path})
    return calls.read_text().splitlines()


def test_the_efi_variable_names_the_boot_loader(host: FakeHost) -> None:
    """GRUB's configuration can remain on a machine that switched to systemd-boot."""
    host.put("/etc/default/grub", "")
    host.put("/boot/loader/entries/a.conf", "")
    assert detect_boot_loader(host.tree).name == "GRUB"
    host.put(LOADER_INFO, b"\x06\0\0\0" + "systemd-boot 252".encode("utf-16-le"))
    assert detect_boot_loader(host.tree).name == "systemd-boot"
    assert detect_boot_loader(FakeHost(f"{host.root}-other").tree).name == "an unknown boot loader"


BACKENDS = ("vfio_iommu_type1", "vfio_iommu_spapr_tce", "iommufd")
LOADABLE = dict.fromkeys(("vfio", "vfio_pci", *BACKENDS), "can be loaded")


@pytest.mark.parametrize(
    ("states", "has_folder", "loading_off", "ok", "words"),
    [
        ({}, True, False, True, "vfio_pci: can be loaded"),
        ({"vfio_pci": "missing"}, True, False, False, "linux-modules-extra"),
        ({"vfio_pci": "missing"}, False, False, False, "reboot into the installed kernel"),
        ({"vfio_iommu_type1": "missing"}, True, False, True, "iommufd: can be loaded"),
        ({"vfio_iommu_type1": "missing", "iommufd": "missing"}, True, False, False, "type1: missing"),
        ({"vfio": "missing", "vfio_pci": "loaded"}, True, False, True, "vfio: loaded"),
        ({}, True, True, False, "disabled until the next boot"),
        (dict.fromkeys(LOADABLE, "built in"), False, True, True, "vfio: built in"),
    ],
)
def test_the_verdict_on_the_modules(
    states: dict[str, str], has_folder: bool, loading_off: bool, ok: bool, words: str
) -> None:
    verdict = judge_modules(
        LOADABLE | states, has_folder=has_folder, loading_off=loading_off, architecture=Architecture.X86
    )
    assert verdict.ok is ok
    assert words in f"{verdict.detail} {verdict.remedy}"


@pytest.mark.parametrize("architecture", [*Architecture, None])
def test_the_modules_of_each_architecture(architecture: Architecture | None) -> None:
    is_power = architecture is Architecture.POWER
    for missing, ok in {"vfio_iommu_type1": is_power, "vfio_iommu_spapr_tce": not is_power}.items():
        states = LOADABLE | {missing: "missing", "iommufd": "missing"}
        verdict = judge_modules(states, has_folder=True, loading_off=False, architecture=architecture)
        assert verdict.ok is ok
        assert ("amd64" in (verdict.remedy or "")) == (not ok and architecture is Architecture.X86)


def test_module_names_are_read_from_modules_dep() -> None:
    text = "kernel/a/vfio-pci.ko.xz: kernel/b/vfio.ko\nkernel/b/vfio.ko:\nkernel/c/i6300esb.ko\n"
    assert module_names(text) == {"vfio_pci", "vfio", "i6300esb"}


def test_the_verdict_on_lockdown() -> None:
    modes = (
        "[none] integrity confidentiality",
        "none [integrity] confidentiality",
        "none integrity [confidentiality]",
    )
    assert [judge_lockdown(text, can_say=True).ok for text in (*modes, None, "odd")] == [
        True,
        True,
        True,
        True,
        None,
    ]
    assert judge_lockdown(None, can_say=False).ok is None
    assert "VFIO works" in judge_lockdown(modes[1], can_say=True).detail


def test_the_verdict_on_the_era() -> None:
    assert {era: judge_era(era, "x").ok for era in Era} == {
        Era.DEFERRED_PUT: False,
        Era.NOTIFIER: False,
        Era.DMA_OWNER: True,
        Era.CDEV: True,
    }
    assert "kernel BUG" in judge_era(Era.NOTIFIER, "5.17").detail


@pytest.mark.parametrize(
    ("limit", "is_exempt", "ok"),
    [
        (8 << 20, False, False),
        (8 << 20, True, True),
        (None, False, True),
        (4 * GIB, False, True),
        (3 * GIB, False, False),
    ],
)
def test_the_verdict_on_memlock(limit: int | None, is_exempt: bool, ok: bool) -> None:
    verdict = judge_memlock(limit, 8 * GIB, is_exempt=is_exempt, user="ada")
    assert verdict.ok is ok
    assert ok or "echo 'ada - memlock unlimited'" in (verdict.remedy or "")


def test_the_verdict_on_hugepages() -> None:
    assert judge_hugepages({}, "always [madvise] never").ok is True
    assert judge_hugepages({"2048kB": (0, 0)}, "always madvise [never]").ok is False
    reserved = judge_hugepages({"2048kB": (8, 3)}, "always madvise [never]")
    assert (reserved.ok, reserved.detail) == (
        True,
        "8 of 2048kB reserved, 3 free; transparent huge pages: never",
    )
    assert judge_hugepages({}, None).ok is None


def test_the_verdict_on_nodes() -> None:
    container = {"/dev/vfio/vfio": (0o666, 0, 0)}
    assert judge_nodes({}).ok is True
    assert judge_nodes({**container, "/dev/vfio/7": (0o600, 0, 0)}).ok is True
    assert judge_nodes({**container, "/dev/vfio/7": (0o600, 1000, 0)}).detail.endswith(
        "0600 of user 1000, group 0"
    )
    exposed = judge_nodes({**container, "/dev/vfio/7": (0o602, 0, 0), "/dev/vfio/a b": (0o604, 0, 0)})
    assert (exposed.ok, exposed.remedy) == (False, "chmod o-rwx /dev/vfio/7 '/dev/vfio/a b'")
    closed = judge_nodes({"/dev/vfio/vfio": (0o600, 0, 0), "/dev/vfio/7": (0o660, 0, 7)})
    assert (closed.ok, closed.remedy) == (False, "chmod 0666 /dev/vfio/vfio")


def test_a_group_partly_on_vfio_pci_is_not_viable(ready: FakeHost) -> None:
    assert checks(ready)["viability"].detail == "groups on a VFIO driver: 1, all viable"
    ready.add_device(NIC, driver="vfio-pci", group=7)
    ready.add_device(SISTER, driver="e1000e", group=7)
    check = checks(ready)["viability"]
    assert (check.ok, check.remedy) == (False, "vfiotool bind --group group:7")
    assert check.detail == f"group 7 is not viable while {SISTER} is on e1000e"


def test_the_verdict_on_leftovers(ready: FakeHost) -> None:
    assert judge_leftovers([f"{EDU}.json"], [], []).ok is True
    plan = judge_leftovers([], [f"{EDU}.jsonl"], [])
    assert (plan.ok, plan.remedy, plan.detail.endswith(EDU)) == (False, "vfiotool recover", True)
    assert judge_leftovers([], [], [EDU]).ok is False
    ready.put(f"{ready.state_dir}/journal/{EDU}.json", "")
    ready.put(f"{ready.state_dir}/transactions/{EDU}.jsonl.new", "")
    assert checks(ready)["leftovers"].detail == "none; devices to restore later: 1"
    ready.put(f"{ready.state_dir}/transactions/{EDU}.jsonl", "")
    assert checks(ready)["leftovers"].ok is False
