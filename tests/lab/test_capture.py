"""The verbs print the same on a captured machine as on the machine, and a capture has no secrets."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import need_guests
from tests.support.guest import (
    BUS,
    EDU,
    MACHINE,
    ONE_CPU,
    RELEASE,
    as_before,
    await_,
    done,
    driver,
    group,
    listing,
    output,
    path,
    vfiotool,
    vfiotool_as_nobody,
    write,
)
from vfiotool.host.capture.archives import unpacked
from vfiotool.vfio.container import Container
from vfiotool.vfio.group import Group
from vfiotool.vfio.uapi import IommuType

in_guest = pytest.mark.needs_guest

PLANTED = "hunter2-4d7a"
_LIVE_ONLY = "memlock"
_SERIAL = re.compile(r"Device Serial Number ([0-9a-f-]{23})")
_ON_A_MACHINE = """
import contextlib, io, json, sys
from vfiotool import cli
from vfiotool.host.capture import archives
def said(*args):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        cli.run([*args, "--json"])
    return json.loads(text.getvalue())
with contextlib.ExitStack() as stack:
    options = ["--sysroot", stack.enter_context(archives.unpacked(sys.argv[1]))] if sys.argv[1:] else []
    verbs = ["list"], ["groups"], ["doctor"], ["show", "0000:00:12.0"], ["show", "0000:03:01.0"]
    print(json.dumps([said(*options, *verb) for verb in verbs]))
"""


def documents(*options: str, devices: Iterable[str]) -> list[dict[str, Any]]:
    """Return the output of list, groups, doctor (without its live-only check) and show of these devices."""
    doctor = vfiotool(*options, "doctor", "--json").document
    shown = [done(*options, "show", address) for address in devices]
    return comparable([done(*options, "list"), done(*options, "groups"), doctor, *shown])


def documents_of(archive: Path, devices: Iterable[str]) -> list[dict[str, Any]]:
    """Return the output of these verbs on a captured machine; it is unpacked only once."""
    with unpacked(str(archive)) as folder:
        return documents("--sysroot", folder, devices=devices)


def comparable(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what needs the machine itself: doctor's check of the running process, and the nodes that
    processes have open: a capture has no processes but the holders of VFIO nodes."""
    for shown in said[3:]:
        shown["usage"] = [use for use in shown["usage"] if use["kind"] != "node"]
    doctor = said[2]
    doctor["checks"] = [check for check in doctor["checks"] if check["name"] != _LIVE_ONLY]
    return said


def contents(archive: Path) -> bytes:
    """Return the content of an archive: names, targets of links, contents of files."""
    said = io.BytesIO()
    with tarfile.open(archive) as tar:
        for member in tar:
            said.write(f"{member.name}\n{member.linkname}\n".encode())
            file = tar.extractfile(member) if member.isreg() else None
            said.write(file.read() if file is not None else b"")
    return said.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "machine.tar.gz"


@contextlib.contextmanager
def held(address: str) -> Iterator[None]:
    """Bind a device to vfio-pci, and hold it open."""
    output("modprobe", "vfio-pci")
    with as_before(address):
        write(path(address, "driver_override"), "vfio-pci")
        write(f"{BUS}/drivers/vfio-pci/bind", address)
        number = group(address)
        assert number is not None
        with Container() as container, Group(number) as its_group:
            its_group.set_container(container)
            container.set_iommu(IommuType.TYPE1v2)
            with its_group.open_device(address):
                yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Secrets in files that are read: the kernel command line, processes (this one, too), and mounts."""
    folder = tmp_path_factory.mktemp("planted")
    cmdline, point = folder / "cmdline", folder / "point"
    cmdline.write_text(f"root=UUID={PLANTED} luks.key={PLANTED} intel_iommu=on ip=10.1.2.3:{PLANTED}\n")
    point.mkdir()
    output("mount", "--bind", str(cmdline), "/proc/cmdline")
    output("mount", "-t", "tmpfs", PLANTED, str(point))
    program = [sys.executable, "-c", "import time; time.sleep(1000)", PLANTED]
    os.environ["VFIOTOOL_TEST_TOKEN"] = PLANTED
    with subprocess.Popen(program) as process:
        assert PLANTED in Path("/proc/cmdline").read_text()
        yield
        process.kill()
    del os.environ["VFIOTOOL_TEST_TOKEN"]
    output("umount", str(point), "/proc/cmdline")


@dataclass(frozen=True)
class Captured:
    """The output of the verbs on a machine, with all its devices, and the archive."""

    live: list[dict[str, Any]]
    devices: list[str]
    archive: Path


@pytest.fixture(scope="module")
def machine(planted: None, tmp_path_factory: pytest.TempPathFactory) -> Captured:
    devices = list(listing())
    archive = tmp_path_factory.mktemp("capture") / "machine.tar.gz"
    live = documents(devices=devices)
    assert vfiotool("capture", str(archive)).status == 0
    return Captured(live, devices, archive)


@pytest.mark.full
@in_guest
def test_a_capture_equals_the_machine(machine: Captured) -> None:
    assert documents_of(machine.archive, machine.devices) == machine.live
    assert machine.archive.stat().st_mode & 0o777 == 0o600


@pytest.mark.full
@in_guest
def test_no_secret_is_captured(machine: Captured) -> None:
    said = contents(machine.archive)
    assert PLANTED.encode() not in said
    assert b"intel_iommu=on" in said
    with tarfile.open(machine.archive) as tar:
        assert not [one for one in tar.getnames() if re.search(r"proc/\d+/(environ|cmdline|maps|fd)", one)]


@pytest.mark.full
@in_guest
def test_no_serial_number_and_no_mac_is_captured(machine: Captured) -> None:
    """A network card derives the serial number in configuration space from its MAC address."""
    serials = [bytes.fromhex(one.replace("-", ""))[::-1] for one in _SERIAL.findall(output("lspci", "-vvv"))]
    macs = [file.read_text().strip() for file in Path("/sys/class/net").glob("*/address")]
    macs.remove("00:00:00:00:00:00")
    assert serials
    assert macs
    said = contents(machine.archive)
    for secret in (*serials, *(mac.encode() for mac in macs), b"lab0"):
        assert secret not in said


@pytest.mark.full
@in_guest
@pytest.mark.skipif((RELEASE, MACHINE) != ((6, 12), "default"), reason="seen enough on one machine")
def test_the_capture_of_an_unprivileged_user_equals_what_the_user_sees() -> None:
    """Files that this user may not read stay unreadable, even if root reads the capture."""
    file = "/tmp/nobody.tar.gz"
    seen = vfiotool_as_nobody("groups", "--json").document, vfiotool_as_nobody("doctor", "--json").document
    captured = vfiotool_as_nobody("capture", file)
    assert captured.status == 0, captured.stderr
    same = done("--sysroot", file, "groups"), vfiotool("--sysroot", file, "doctor", "--json").document
    for documents in (seen, same):
        documents[1]["checks"] = [one for one in documents[1]["checks"] if one["name"] != _LIVE_ONLY]
    assert same == seen


@pytest.mark.full
@in_guest
@pytest.mark.skipif(MACHINE != "default", reason="one IOMMU is enough")
def test_a_capture_while_a_device_is_held_and_while_its_unbind_is_blocked(archive: Path) -> None:
    with held(EDU):
        live = documents(devices=[EDU])
        begun = time.monotonic()
        assert vfiotool("capture", str(archive)).status == 0
        usual = time.monotonic() - begun
        assert documents_of(archive, [EDU]) == live
        holders = live[-1]["group"]["holders"]
        assert os.getpid() in {holder["pid"] for holder in holders}
        unbind = subprocess.Popen(["sh", "-c", f"echo {EDU} > {BUS}/drivers/vfio-pci/unbind"])
        await_("the unbind has begun", lambda: driver(EDU) is None)
        blocked = archive.with_name("blocked")
        begun = time.monotonic()
        assert vfiotool("capture", str(blocked)).status == 0
        assert time.monotonic() - begun < 5 * usual, "reads that block add seconds, not minutes"
        assert done("--sysroot", str(blocked), "list") == done("list")
    assert unbind.wait(60) == 0


@pytest.mark.full
def test_the_verbs_print_the_same_on_the_host_as_in_the_guest(archive: Path) -> None:
    """The guest writes the archive to its standard output, and the host reads it."""
    need_guests()
    program = os.path.join(os.path.dirname(sys.executable), "vfiotool")
    capture = f"{program} capture /tmp/machine > /dev/null && cat /tmp/machine"
    script = f"{sys.executable} -c '{_ON_A_MACHINE}' && {capture}"
    ran = subprocess.run(
        [program, "lab", "run", "--kernel", "6.12", *ONE_CPU, "--", "sh", "-c", script],
        capture_output=True,
        timeout=300,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    there, _, packed = ran.stdout.partition(b"\n")
    archive.write_bytes(packed)
    here = subprocess.run(
        [sys.executable, "-c", _ON_A_MACHINE, str(archive)], capture_output=True, check=True
    )
    assert comparable(json.loads(here.stdout)) == comparable(json.loads(there))
    assert [one["address"] for one in json.loads(there)[0]["devices"]]
