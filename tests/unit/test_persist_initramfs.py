"""What makes the running kernel's initramfs, on machines of all kinds: found, or said to be unknown."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit.conftest import Run
from vfiotool.binding.persist.check import check
from vfiotool.binding.persist.entries import add_all, entries, entry_for, remove_all
from vfiotool.binding.persist.initramfs_hooks import HOOKS, rebuild_commands
from vfiotool.binding.persist.udev_rule import RULES_DIR
from vfiotool.host.boot_image import boot_images, had_initramfs
from vfiotool.host.doctor import Check
from vfiotool.testing import FakeHost

Files = dict[str, str | bytes]

NIC = "0000:00:12.0"
RELEASE = "6.12.0"
MKINITCPIO, DRACUT, INITRAMFS_TOOLS = "/usr/bin/mkinitcpio", "/usr/bin/dracut", "/usr/sbin/mkinitramfs"
KERNEL_INSTALL = "/usr/bin/kernel-install"
VARIABLES = "/sys/firmware/efi/efivars/{}-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
WITH_DROP_INS: Files = {MKINITCPIO: "#!/bin/bash\n_d_config=/etc/mkinitcpio.conf.d\n"}
PACKAGE: Files = {f"/lib/modules/{RELEASE}/pkgbase": "linux"}


@pytest.fixture(autouse=True)
def machine(host: FakeHost) -> FakeHost:
    host.add_driver("vfio-pci")
    host.add_device(NIC, vendor=0x8086, device=0x10D3, driver="vfio-pci", group=5)
    for folder in (RULES_DIR, "/run/udev"):
        os.makedirs(host.tree.path(folder))
    return host


def boot_params(size: int, ext_size: int = 0) -> bytes:
    """Return the first page of the boot parameters, as offsets of struct boot_params in <asm/bootparam.h>."""
    page = bytearray(4096)
    struct.pack_into("<I", page, 0xC4, ext_size)
    struct.pack_into("<I", page, 0x1F1 + 0x2B, size)  # hdr.ramdisk_size
    return bytes(page)


def efi_variable(text: str) -> bytes:
    return b"\6\0\0\0" + f"{text}\0".encode("utf-16-le")


def put(host: FakeHost, files: Mapping[str, str | bytes]) -> None:
    for path, content in files.items():
        file = Path(host.tree.path(path))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


def checks(host: FakeHost) -> tuple[Check, Check]:
    """Add an entry, and return its checks of the hook and of the initramfs."""
    entry = entry_for(host.tree, NIC, "vfio-pci")
    add_all(host.tree, [entry])
    found = {one.name: one for one in check(host.tree, entry)}
    return found["initramfs-hook"], found["initramfs"]


def age(host: FakeHost, *paths: str) -> None:
    for path in paths:
        os.utime(host.tree.path(path), (1, 1))


@pytest.mark.parametrize(
    ("files", "had"),
    [
        ({}, None),
        ({"/sys/kernel/boot_params/data": boot_params(7)}, True),
        ({"/sys/kernel/boot_params/data": boot_params(0, ext_size=1)}, True),
        ({"/sys/kernel/boot_params/data": boot_params(0)}, False),
        ({"/sys/kernel/boot_params/data": b"short"}, None),
        ({"/proc/device-tree/chosen/linux,initrd-start": b"\0\0\0\0"}, True),
        ({VARIABLES.format("StubInfo"): efi_variable("systemd-stub 257")}, True),
    ],
)
def test_kernel_says_whether_it_had_an_initramfs(
    host: FakeHost, files: Mapping[str, str | bytes], had: bool | None
) -> None:
    put(host, files)
    assert had_initramfs(host.tree) is had


LAYOUTS: dict[str, tuple[Files, list[str], list[str]]] = {
    "Debian": (
        {INITRAMFS_TOOLS: "", f"/boot/initrd.img-{RELEASE}": ""},
        [f"/boot/initrd.img-{RELEASE}"],
        ["update-initramfs -u"],
    ),
    "Debian, with the parts of dracut": (
        {INITRAMFS_TOOLS: "", DRACUT: "", f"/boot/initrd.img-{RELEASE}": ""},
        [f"/boot/initrd.img-{RELEASE}"],
        ["update-initramfs -u"],
    ),
    "Debian with dracut": (
        {DRACUT: "", f"/boot/initrd.img-{RELEASE}": ""},
        [f"/boot/initrd.img-{RELEASE}"],
        ["dracut -f"],
    ),
    "Fedora": (
        {DRACUT: "", KERNEL_INSTALL: "", f"/boot/initramfs-{RELEASE}.img": ""},
        [f"/boot/initramfs-{RELEASE}.img"],
        ["dracut -f"],
    ),
    "SUSE": (
        {"/usr/sbin/dracut": "", f"/boot/initrd-{RELEASE}": ""},
        [f"/boot/initrd-{RELEASE}"],
        ["dracut -f"],
    ),
    "Arch": (
        WITH_DROP_INS | PACKAGE | {"/boot/initramfs-linux.img": "", "/boot/initramfs-linux-lts.img": ""},
        ["/boot/initramfs-linux.img"],
        ["mkinitcpio -P"],
    ),
    "Arch with dracut": (
        PACKAGE | {DRACUT: "", "/boot/initramfs-linux.img": ""},
        ["/boot/initramfs-linux.img"],
        ["dracut -f"],
    ),
    "Arch with UKIs": (
        WITH_DROP_INS
        | PACKAGE
        | {"/efi/EFI/Linux/arch-linux.efi": "", "/efi/EFI/Linux/arch-linux-lts.efi": ""},
        ["/efi/EFI/Linux/arch-linux.efi"],
        ["mkinitcpio -P"],
    ),
    "a UKI that the stub names": (
        {
            DRACUT: "",
            KERNEL_INSTALL: "",
            f"/boot/initramfs-{RELEASE}.img": "",
            "/boot/efi/EFI/Linux/mine.efi": "",
            VARIABLES.format("StubInfo"): efi_variable("systemd-stub 257"),
            VARIABLES.format("StubImageIdentifier"): efi_variable("\\EFI\\Linux\\mine.efi"),
        },
        ["/boot/efi/EFI/Linux/mine.efi"],
        [f"kernel-install add {RELEASE} /lib/modules/{RELEASE}/vmlinuz"],
    ),
    "a UKI on a partition that is not mounted": (
        {
            DRACUT: "",
            f"/boot/initramfs-{RELEASE}.img": "",
            VARIABLES.format("StubInfo"): efi_variable("systemd-stub 252"),
        },
        [],
        ["dracut -f"],
    ),
    "systemd-boot": (
        {
            DRACUT: "",
            KERNEL_INSTALL: "",
            f"/efi/abc/{RELEASE}/initrd": "",
            f"/efi/abc/{RELEASE}/linux": "",
            "/efi/abc/6.1.0/initrd": "",
        },
        [f"/efi/abc/{RELEASE}/initrd"],
        [f"kernel-install add {RELEASE} /lib/modules/{RELEASE}/vmlinuz"],
    ),
    "systemd-boot, which names the image": (
        WITH_DROP_INS
        | {"/boot/initramfs-linux.img": "", "/boot/initramfs-linux-lts.img": ""}
        | {"/proc/cmdline": r"initrd=\intel-ucode.img initrd=\initramfs-linux-lts.img root=/dev/sda2"},
        ["/boot/initramfs-linux-lts.img"],
        ["mkinitcpio -P"],
    ),
    "a generator that vfiotool does not know": (
        {
            DRACUT: "",
            KERNEL_INSTALL: "",
            f"/efi/abc/{RELEASE}/initrd": "",
            "/etc/kernel/install.conf": "layout=bls\ninitrd_generator=booster\n",
        },
        [f"/efi/abc/{RELEASE}/initrd"],
        [],
    ),
    "no builder": ({f"/boot/initramfs-{RELEASE}.img": ""}, [f"/boot/initramfs-{RELEASE}.img"], []),
    "ostree": (
        {
            DRACUT: "",
            "/run/ostree-booted": "",
            "/usr/bin/rpm-ostree": "",
            f"/boot/ostree/fedora-1a2b/initramfs-{RELEASE}.img": "",
        },
        [f"/boot/ostree/fedora-1a2b/initramfs-{RELEASE}.img"],
        ["rpm-ostree initramfs --enable"],
    ),
}
UNKNOWN_BUILDER = ("a generator that vfiotool does not know", "no builder", "ostree")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_image_and_its_builder_are_found(host: FakeHost, layout: str) -> None:
    files, images, commands = LAYOUTS[layout]
    put(host, files)
    assert boot_images(host.tree) == images
    assert rebuild_commands(host.tree) == commands
    hook, image = checks(host)
    assert hook.ok is (None if layout in UNKNOWN_BUILDER else True), hook
    age(host, *images)
    hook, image = checks(host)
    assert image.ok is (False if images else None), image
    assert hook.remedy or hook.ok
    assert image.remedy


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_needed_without_an_initramfs(vfiotool: Run, host: FakeHost, layout: str) -> None:
    """If the kernel says that it had none: a file in /boot can be of another kernel."""
    put(host, {path: text for path, text in LAYOUTS[layout][0].items() if "efivars" not in path})
    put(host, {"/sys/kernel/boot_params/data": boot_params(0)})
    assert [one.ok for one in checks(host)] == [True, True]
    assert vfiotool("persist", "add", NIC).stderr == ""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_claimed_of_an_image_that_is_not_seen(host: FakeHost, layout: str) -> None:
    files, images, _ = LAYOUTS[layout]
    put(host, {path: text for path, text in files.items() if path not in images})
    _, image = checks(host)
    assert image.ok is None
    assert image.remedy


def test_unknown_builder_is_a_warning(vfiotool: Run, host: FakeHost) -> None:
    added = vfiotool("persist", "add", NIC)
    assert added.status == 0
    assert added.stderr.startswith("warning: it is not known what makes this machine's initramfs: ")
    hook, _ = checks(host)
    assert (hook.ok, hook.remedy) == (
        None,
        f"put {entries(host.tree)[0].rule} and the module vfio-pci into the initramfs",
    )


def test_two_images_of_which_one_is_old_are_unknown(host: FakeHost) -> None:
    images = [f"/boot/initramfs-{RELEASE}.img", f"/efi/EFI/Linux/abc-{RELEASE}.efi"]
    put(host, dict.fromkeys([DRACUT, *images], ""))
    checks(host)
    for image in images:
        os.utime(host.tree.path(image), (2**32, 2**32))
    assert checks(host)[1].ok is True
    age(host, images[1])
    assert checks(host)[1].ok is None


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({MKINITCPIO: "#!/bin/bash"}, "reads no files of /etc/mkinitcpio.conf.d"),
        (
            WITH_DROP_INS | {"/etc/mkinitcpio.d/linux.preset": 'ALL_config="/etc/mkinitcpio.conf"\n'},
            "names a configuration of its own",
        ),
        (WITH_DROP_INS | {"/etc/mkinitcpio.d/linux.preset": '#ALL_config="/etc/mkinitcpio.conf"\n'}, None),
    ],
)
def test_mkinitcpio_that_does_not_read_the_hook(host: FakeHost, files: Files, reason: str | None) -> None:
    put(host, files)
    hook, _ = checks(host)
    assert hook.ok is (True if reason is None else None)
    assert reason is None or reason in hook.detail


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.builder)
def test_builder_without_its_folder_gets_its_hook(host: FakeHost, hook: object) -> None:
    """A builder can be installed without the folder of its configuration."""
    (chosen,) = [one for one in HOOKS if one is hook]
    put(host, {chosen.programs[0]: ""})
    checks(host)
    assert host.tree.read(chosen.path) + "\n" == chosen.text
    host.remove(chosen.programs[0])
    remove_all(host.tree, entries(host.tree))
    assert not host.tree.exists(chosen.path)


@pytest.mark.parametrize(
    ("name", "files", "modules"),
    [("mkinitcpio", "FILES", "MODULES"), ("dracut", "install_items", "add_drivers")],
)
def test_configuration_names_rules_and_drivers(host: FakeHost, name: str, files: str, modules: str) -> None:
    """The builder's shell, bash, adds them to what the machine's own configuration has."""
    entry = entry_for(host.tree, NIC, "vfio-pci")
    add_all(host.tree, [entry])
    (hook,) = [one for one in HOOKS if one.builder == name]
    text = hook.text.replace("/etc/udev/", f"{host.root}/etc/udev/")
    start = (
        "FILES=(/etc/own) MODULES=(btrfs)"
        if name == "mkinitcpio"
        else "install_items=/etc/own add_drivers=btrfs"
    )
    script = f"{start}\n{text}\necho ${{{files}[@]}}; echo ${{{modules}[@]}}"
    shown = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True).stdout
    assert [line.split() for line in shown.splitlines()] == [
        ["/etc/own", f"{host.root}{entry.rule}"],
        ["btrfs", "vfio-pci"],
    ]
