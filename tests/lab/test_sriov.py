"""The verb sriov on the lab's PF, as the kernel's log, udevadm and lspci see it."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guest import (
    SUBSYSTEM_NVME,
    await_,
    done,
    kernel_complaints,
    link,
    needs_iommu,
    output,
    path,
    read,
    vfiotool,
)

pytestmark = [pytest.mark.needs_guest, needs_iommu]

PF = SUBSYSTEM_NVME
VFS = ["0000:01:00.1", "0000:01:00.2"]
_EVENT = re.compile(r"^(KERNEL|UDEV) *\[[0-9.]+\] (\w+) +\S+/(\S+) \(pci\)$", re.MULTILINE)


@pytest.fixture(autouse=True)
def _as_found() -> Iterator[None]:
    complaints = kernel_complaints()
    yield
    done("sriov", PF, "0")
    assert (read(path(PF, "sriov_numvfs")), read(path(PF, "sriov_drivers_autoprobe"))) == ("0", "1")
    assert kernel_complaints() == complaints


class Monitor:
    """The events of PCI devices that udevadm writes to a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def is_ready(self) -> bool:
        return "the kernel uevent\n\n" in self._file.read_text()

    @property
    def events(self) -> list[tuple[str, str, str]]:
        """Source, action and address."""
        return _EVENT.findall(self._file.read_text())


@contextlib.contextmanager
def udevadm_monitor(file: Path) -> Iterator[Monitor]:
    with file.open("w") as out, contextlib.ExitStack() as stack:
        command = ["stdbuf", "-oL", "udevadm", "monitor", "--kernel", "--udev", "--subsystem-match=pci"]
        process = stack.enter_context(subprocess.Popen(command, stdout=out))
        stack.callback(process.terminate)
        monitor = Monitor(file)
        await_("udevadm listens", lambda: monitor.is_ready)
        yield monitor


def nvme_lines() -> list[str]:
    """Return the NVMe driver's lines about VFs in the kernel's log."""
    return re.findall(r"nvme.*0000:01:00\.[1-9].*", output("dmesg", "--notime"))


@pytest.mark.full
def test_vfs_for_vfio_pci_are_never_seen_by_their_host_driver(tmp_path: Path) -> None:
    before = nvme_lines()
    with udevadm_monitor(tmp_path / "events") as monitor:
        document = done("sriov", PF, "2", "--bind")
        wanted = {
            (source, action, vf) for source in ("KERNEL", "UDEV") for action in ("add", "bind") for vf in VFS
        }
        await_("udevadm has seen each event", lambda: wanted <= set(monitor.events))
    assert [one["address"] for one in document["vfs"]] == VFS
    assert [link(path(PF, f"virtfn{number}")) for number in range(2)] == VFS
    assert nvme_lines() == before
    for vf in VFS:
        assert "Kernel driver in use: vfio-pci" in output("lspci", "-k", "-s", vf)


@pytest.mark.full
def test_vfs_that_are_left_to_the_host_are_tried_by_their_driver() -> None:
    """Which fails, for they are offline; and so the test above can fail."""
    before = nvme_lines()
    done("sriov", PF, "1")
    assert len(nvme_lines()) > len(before)


@pytest.mark.full
def test_vfs_go_with_their_events(tmp_path: Path) -> None:
    done("sriov", PF, "2", "--bind")
    with udevadm_monitor(tmp_path / "events") as monitor:
        assert done("sriov", PF, "0")["vfs"] == []
        wanted = {("UDEV", action, vf) for action in ("unbind", "remove") for vf in VFS}
        await_("udevadm has seen each event", lambda: wanted <= set(monitor.events))
    assert vfiotool("restore", PF).status == 1, "it is as it was"
