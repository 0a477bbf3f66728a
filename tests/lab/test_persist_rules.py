"""The rule of a persisted device at the moments that matter, and the hook for its initramfs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import missing
from tests.support.guest import (
    BUS,
    EDU,
    KERNEL,
    NVME,
    OTHER_NVME,
    PROGRAM,
    SUBSYSTEM_NVME,
    TESTDEV,
    as_before,
    await_,
    done,
    driver,
    needs_iommu,
    output,
    path,
    read,
    remove,
    rescan,
    settle,
    vfiotool,
    write,
)
from vfiotool.binding import udevadm
from vfiotool.binding.persist import arrival_rule
from vfiotool.binding.persist.entries import add_all, entries, entry_for, remove_all
from vfiotool.binding.persist.initramfs_hooks import HOOKS
from vfiotool.binding.persist.udev_rule import RULES_DIR, PersistEntry
from vfiotool.host.tree import Tree

CONFIGURATION = (RULES_DIR, "/etc/initramfs-tools", "/etc/dracut.conf.d")
TREE = Tree()

pytestmark = [pytest.mark.needs_guest, needs_iommu]


def add(address: str) -> PersistEntry:
    entry = entry_for(TREE, address, "vfio-pci")
    add_all(TREE, [entry])
    return entry


def forget_the_start() -> None:
    """Have the next event be the machine's first, as after a restart: what is in /run is gone."""
    for stamp in Path("/run/udev").glob("vfiotool-*"):
        stamp.unlink()


def trigger(address: str) -> None:
    """Have udevd handle a device's "add" event, as at the start of the machine, to its end.

    By itself udevd looks for changed rules every few seconds only.
    """
    udevadm.reload()
    output("udevadm", "trigger", "--settle", "--action=add", path(address))


@pytest.fixture
def unloaded() -> Iterator[None]:
    """No NVMe has a driver, none is loaded for them, and nothing is persisted: as before udevd starts."""
    settle()
    output("modprobe", "-r", "nvme")
    output("modprobe", "-r", "vfio-pci")
    yield
    vfiotool("persist", "remove", "--all")
    for address in (NVME, SUBSYSTEM_NVME, OTHER_NVME):
        write(path(address, "driver_override"), "\n")
        if driver(address) == "vfio-pci":
            write(path(address, "driver/unbind"), address)
    output("modprobe", "nvme")
    for address in (NVME, SUBSYSTEM_NVME, OTHER_NVME):
        if driver(address) is None:
            write(f"{BUS}/drivers/nvme/bind", address)
    settle()


def persisted(address: str) -> dict[str, Any]:
    (entry,) = done("persist", "add", address)["entries"]
    return dict(entry)


def test_until_the_next_start_nothing_is_set() -> None:
    """Nor is anything once the entry is removed, though udevd looks for changed rules only now and then."""
    persisted(EDU)
    trigger(TESTDEV)
    assert read(path(EDU, "driver_override")) == "(null)"
    udevadm.reload()
    forget_the_start()
    done("persist", "remove", EDU)
    output("udevadm", "trigger", "--settle", "--action=add", path(TESTDEV))
    assert read(path(EDU, "driver_override")) == "(null)"


@pytest.mark.full
def test_another_devices_event_comes_first(unloaded: None) -> None:
    """That one loads nvme, which would take its twin as well: udevd handles events side by side."""
    persisted(NVME)
    forget_the_start()
    trigger(OTHER_NVME)
    assert driver(OTHER_NVME) == "nvme"
    assert (driver(NVME), read(path(NVME, "driver_override"))) == (None, "vfio-pci")
    trigger(NVME)
    assert driver(NVME) == "vfio-pci"
    assert read(path(OTHER_NVME, "driver_override")) == "(null)"


def test_a_second_device_is_bound_although_the_driver_is_loaded(unloaded: None) -> None:
    done("persist", "add", NVME, OTHER_NVME)
    forget_the_start()
    trigger(NVME)
    trigger(OTHER_NVME)
    assert (driver(NVME), driver(OTHER_NVME)) == ("vfio-pci", "vfio-pci")


@pytest.mark.full
def test_other_ids_at_the_place_are_left_alone(unloaded: None) -> None:
    """The rule is of a card that was replaced: to the rule it says 1b36:0010, to the kernel 1b36:0011."""
    entry = entries(TREE)[0] if persisted(NVME) else None
    assert entry is not None
    rule = Path(entry.rule)
    rule.write_text(rule.read_text().replace("0x0010", "0x0011"))
    forget_the_start()
    trigger(NVME)
    assert (driver(NVME), read(path(NVME, "driver_override"))) == ("nvme", "(null)")


@pytest.mark.full
def test_the_bus_number_does_not_matter_and_the_slot_does(unloaded: None) -> None:
    """06:00.0's entry, written as if it had been 2a:00.0, holds; 01:00.0 has the same ids elsewhere."""
    entry = add(OTHER_NVME)
    rule = Path(entry.rule)
    rule.write_text(rule.read_text().replace(OTHER_NVME, "0000:2a:00.0"))
    forget_the_start()
    trigger(SUBSYSTEM_NVME)
    trigger(OTHER_NVME)
    assert (driver(OTHER_NVME), driver(SUBSYSTEM_NVME)) == ("vfio-pci", "nvme")
    assert done("persist", "list")["entries"][0]["present_at"] == OTHER_NVME


@pytest.mark.full
def test_a_device_that_has_a_driver_keeps_it() -> None:
    """A machine that runs triggers all events again when udev is upgraded."""
    persisted(NVME)
    forget_the_start()
    try:
        trigger(NVME)
        assert (driver(NVME), read(path(NVME, "driver_override"))) == ("nvme", "(null)")
        result = vfiotool("persist", "check", "--json")
        (entry,) = result.document["entries"]
        failed = [check["name"] for check in entry["checks"] if check["ok"] is False]
        assert (result.status, failed) == (1, ["driver"])
    finally:
        done("persist", "remove", "--all")


@pytest.mark.full
def test_a_device_found_by_a_rescan_is_bound_by_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own driver is loaded and takes it first, and there is no vfiotool that udevd may run."""
    monkeypatch.setattr(arrival_rule, "this_program", lambda: None)
    before = driver(NVME)
    done("persist", "add", "--owner", "1000:107", NVME)
    try:
        write(path(NVME, "remove"), "1")
        write(f"{BUS}/rescan", "1")
        settle()
        assert driver(NVME) == "nvme"
        done("persist", "apply", NVME)
        assert driver(NVME) == "vfio-pci"
        (node,) = (one for one in Path("/dev/vfio").iterdir() if one.name.isdecimal())
        status = node.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (1000, 107, 0o660)
    finally:
        vfiotool("persist", "remove", "--all")
        done("restore", NVME)
    assert driver(NVME) == before


@pytest.mark.full
def test_remove_leaves_no_trace() -> None:
    before = configuration()
    persisted(EDU)
    trigger(EDU)
    added = set(configuration()) - set(before)
    assert f"{RULES_DIR}/40-vfiotool-pci0000-00-10.0.rules" in added
    assert (driver(EDU), read(path(EDU, "driver_override"))) == ("vfio-pci", "vfio-pci")
    done("persist", "remove", EDU)
    assert configuration() == before
    assert [name for name in os.listdir("/run/udev") if "vfiotool" in name] == []
    write(path(EDU, "driver_override"), "\n")
    write(path(EDU, "driver/unbind"), EDU)
    settle()


def configuration() -> dict[str, tuple[int, bytes]]:
    """Every file and folder that persist could change: mode and content."""
    found = {}
    for root in CONFIGURATION:
        for one in (Path(root), *Path(root).rglob("*")):
            if one.exists():
                content = b"" if one.is_dir() else one.read_bytes()
                found[str(one)] = (one.lstat().st_mode, content)
    return found


@pytest.mark.full
@pytest.mark.skipif(KERNEL != "6.12", reason="the same on all kernels, and slow: run on 6.12")
def test_the_initramfs_hook_takes_rule_and_driver(tmp_path: Path) -> None:
    """It runs as mkinitramfs(8) runs it: that whole program takes minutes under emulation."""
    if not os.path.exists("/usr/share/initramfs-tools/hook-functions"):
        missing("initramfs-tools is not installed")
    release, image = os.uname().release, tmp_path / "image"
    image.mkdir()
    settings = {"version": release, "MODULESDIR": f"/lib/modules/{release}", "DESTDIR": str(image)}
    entry = add(EDU)
    try:
        (hook,) = (hook.path for hook in HOOKS if hook.builder == "initramfs-tools")
        assert output(hook, "prereqs") == ""
        output("env", *(f"{name}={value}" for name, value in settings.items()), hook)
        rule = Path(entry.rule)
        assert (image / entry.rule.lstrip("/")).read_text() == rule.read_text()
    finally:
        remove_all(TREE, [entry])
    modules = {path.name.partition(".ko")[0] for path in image.rglob("*.ko*")}
    depended = output("modprobe", "--show-depends", "vfio-pci").split()
    assert modules >= {os.path.basename(word).partition(".ko")[0] for word in depended if ".ko" in word}
    assert "vfio-pci" in modules


@pytest.fixture
def arrivals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file to which the vfiotool that udevd runs writes its arguments; it is this checkout's."""
    log, program = tmp_path / "arrivals", tmp_path / "vfiotool"
    log.touch()
    paths = os.pathsep.join(path for path in sys.path if path)
    program.write_text(f'#!/bin/sh\necho "$*" >>{log}\nPYTHONPATH={paths} exec {PROGRAM} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(arrival_rule, "this_program", lambda: str(program))
    with as_before(NVME):  # if the rule of the entry was faster than nvme, no record leads back
        yield log
        vfiotool("persist", "remove", "--all")
        vfiotool("restore", NVME)
    assert driver(NVME) == "nvme"


def test_a_device_that_arrives_is_bound_although_its_own_driver_is_loaded(arrivals: Path) -> None:
    """A restore keeps it on its own driver, and so does an event that udevadm repeats."""
    persisted(NVME)
    assert arrival_rule.written_program(Path(arrival_rule.PATH).read_text())
    udevadm.reload()
    assert driver(NVME) == "nvme"
    remove(NVME)
    rescan(NVME)
    await_(f"{NVME} is bound", lambda: driver(NVME) == "vfio-pci")
    settle()
    ran = arrivals.read_text().splitlines()
    assert ran in ([], [f"persist apply {NVME}"])
    # The override that the entry's rule sets can be faster than nvme: then nothing is recorded.
    if vfiotool("restore", NVME).status == 0:
        assert ran
        assert driver(NVME) == "nvme"
        trigger(NVME)
        assert (arrivals.read_text().splitlines(), driver(NVME)) == (ran, "nvme")


def test_a_device_in_use_is_not_taken(arrivals: Path) -> None:
    persisted(NVME)
    (controller,) = os.listdir(path(NVME, "nvme"))
    with open(f"/dev/{controller}", "rb") as node:
        user = subprocess.Popen(["sleep", "600"], stdin=node)
    try:
        refused = vfiotool("persist", "apply", NVME)
    finally:
        user.kill()
        user.wait()
    assert (refused.status, driver(NVME)) == (3, "nvme")
    assert "--allow-opened" in refused.stderr
    assert done("persist", "apply", NVME)["changed"] == [{"address": NVME, "from": "nvme", "to": "vfio-pci"}]


def test_bind_can_persist_too_or_do_neither(tmp_path: Path) -> None:
    before = done("persist", "list")["entries"]
    tmp_path.chmod(0o777)
    refused = vfiotool("--state-dir", str(tmp_path), "bind", EDU, "--persist")
    assert (refused.status, driver(EDU)) == (1, None)
    assert done("persist", "list")["entries"] == before
    try:
        steps = done("bind", EDU, "--persist")["steps"]
        (entry,) = done("persist", "list")["entries"]
        assert (entry["address"], entry["driver"], driver(EDU)) == (EDU, "vfio-pci", "vfio-pci")
        assert steps[-1] == {"path": entry["rule"], "value": Path(entry["rule"]).read_text()}
    finally:
        vfiotool("persist", "remove", "--all")
        vfiotool("restore", EDU)
    assert driver(EDU) is None
