"""A guest that boots twice: a persisted device is never probed by its own driver."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from tests.conftest import need_guests
from tests.support.guest import NVME, ONE_CPU, OTHER_NVME, PROGRAM, SUBSYSTEM_NVME

SECONDS = 400

FIRST_BOOT = f"""
cd /
folders=$(ls -d etc/udev etc/initramfs-tools etc/dracut.conf.d 2>/dev/null)
before=$(find $folders | sort)
{PROGRAM} persist add --owner 1000:107 {OTHER_NVME} >&2 || exit
tar --create $folders
{PROGRAM} persist remove {OTHER_NVME} >&2 || exit
after=$(find $folders | sort)
[ "$before" = "$after" ]
"""

SECOND_BOOT = f"""
{PROGRAM} list --json 1b36:0010
{PROGRAM} persist check --json
status=$?
dmesg --notime | grep 'pci function' >&2
exit $status
"""


def run_in_guest(script: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    arguments = [PROGRAM, "lab", "run", "--kernel", "6.12", *ONE_CPU, *options, "--", "sh", "-c", script]
    return subprocess.run(
        arguments, capture_output=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL
    )


@pytest.fixture
def lab() -> None:
    """Skip, with the reason, where no guest can be started."""
    need_guests()


@pytest.mark.full
@pytest.mark.usefixtures("lab")
def test_a_persisted_device_is_never_probed_by_its_own_driver(tmp_path: Path) -> None:
    """Of three NVMe of the same ids, one, behind a switch, is on vfio-pci; the others are nvme's."""
    first = run_in_guest(FIRST_BOOT)
    assert first.returncode == 0, first.stderr.decode()
    subprocess.run(["tar", "--extract", "--directory", tmp_path], input=first.stdout, check=True)
    second = run_in_guest(SECOND_BOOT, "--files", str(tmp_path))
    log = second.stderr.decode()
    assert second.returncode == 0, log
    listing, checked = (json.loads(line) for line in second.stdout.splitlines())
    drivers = {one["address"]: one["driver"] for one in listing["devices"]}
    assert drivers == {NVME: "nvme", SUBSYSTEM_NVME: "nvme", OTHER_NVME: "vfio-pci"}
    probed = set(re.findall(r"^nvme nvme\d+: pci function (\S+)$", log, re.MULTILINE))
    assert probed == {NVME, SUBSYSTEM_NVME}
    (entry,) = checked["entries"]
    assert (entry["path"], entry["bound_to"]) == ("pci0000:00/04.0/00.0/00.0/00.0", "vfio-pci")
    assert entry["owner"] == {"uid": 1000, "gid": 107}  # and its check compares the nodes with it
    verdicts = {check["name"]: check["ok"] for check in entry["checks"]}
    # The lab's own initramfs is in no file of the guest, and the host may have no builder.
    assert verdicts.pop("initramfs") is None
    assert verdicts.pop("initramfs-hook") is not False
    assert verdicts.pop("hotplug") is not False  # the checkout may be another user's
    assert all(verdicts.values()), entry["checks"]


@pytest.mark.usefixtures("lab")
def test_files_are_laid_over_a_guests_root_as_roots_own(tmp_path: Path) -> None:
    """A program can be run, what was there is replaced, and the folders stay as they were."""
    program, config = tmp_path / "usr/local/bin/greet", tmp_path / "etc/hostname"
    for file, text, mode in ((program, "#!/bin/sh\necho hello\n", 0o755), (config, "laid over\n", 0o640)):
        file.parent.mkdir(parents=True)
        file.write_text(text)
        file.chmod(mode)
    (tmp_path / "etc").chmod(0o700)
    shown = "stat --format='%a %u:%g' /usr/local/bin/greet /etc/hostname /etc"
    result = run_in_guest(f"greet && cat /etc/hostname && {shown}", "--files", str(tmp_path))
    lines = result.stdout.decode().splitlines()
    assert lines == [
        "hello",
        "laid over",
        "755 0:0",
        "640 0:0",
        f"{stat.S_IMODE(os.stat('/etc').st_mode):o} 0:0",
    ]
