"""PFs and VFs: who can bind which when, and what a VF's holder keeps waiting, on the kernel that runs."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blocked_programs import (
    UNBIND,
    await_sleep,
    comes_to_wait,
    reading,
    those_that_wait,
    writing,
)
from tests.support.group_device import GroupDevice
from tests.support.guest import (
    BUS,
    RELEASE,
    VFIO_BIND,
    as_before,
    done,
    driver,
    group,
    link,
    needs_iommu,
    override,
    path,
    prompt_looks,
    read,
    refused,
    to_vfio,
    vfiotool,
    write,
)
from tests.support.guest import SUBSYSTEM_NVME as PF
from vfiotool.errors import KernelError, UnsupportedError
from vfiotool.vfio.device_info import read_device_info
from vfiotool.vfio.features import Features
from vfiotool.vfio.iommu import IommuMode, offered_modes

pytestmark = [pytest.mark.needs_guest, pytest.mark.full, needs_iommu, pytest.mark.usefixtures("vfio_pci")]

VFS = ("0000:01:00.1", "0000:01:00.2")
VF = VFS[0]
NUMVFS = path(PF, "sriov_numvfs")
AUTOPROBE = path(PF, "sriov_drivers_autoprobe")
ENABLE_SRIOV = "/sys/module/vfio_pci/parameters/enable_sriov"
READERS_WAIT = RELEASE <= (6, 1)


def number_of(address: str) -> int:
    number = group(address)
    assert number is not None
    return number


@contextlib.contextmanager
def made(count: int) -> Iterator[None]:
    """Have VFs without drivers for a ``with`` block."""
    write(AUTOPROBE, "0")
    try:
        write(NUMVFS, str(count))
        yield
    finally:
        write(NUMVFS, "0")
        write(AUTOPROBE, "1")


# Trap 9: VFs.


@pytest.mark.parametrize(("count", "code"), [("5", errno.ERANGE), ("-1", errno.EINVAL), ("x", errno.EINVAL)])
def test_a_number_of_vfs_that_cannot_be(count: str, code: int) -> None:
    assert read(path(PF, "sriov_totalvfs")) == "4"
    with pytest.raises(OSError, match=rf"Errno {code}\]"):
        write(NUMVFS, count)
    assert read(NUMVFS) == "0"


def test_vfs_are_complete_in_sysfs_at_once_and_their_number_changes_only_by_way_of_none() -> None:
    with made(2):
        assert [link(path(PF, f"virtfn{index}")) for index in range(2)] == list(VFS)
        for address in VFS:
            assert link(path(address, "physfn")) == PF
            assert group(address) is not None
            assert read(override(address)) == "(null)"
            assert os.stat(path(address, "config")).st_size == 4096
        write(NUMVFS, "2")
        for count in ("1", "3"):
            with pytest.raises(OSError, match=rf"Errno {errno.EBUSY}\]"):
                write(NUMVFS, count)
        assert read(NUMVFS) == "2"
    assert not any(os.path.exists(path(address)) for address in VFS)


def test_a_pf_keeps_its_vfs_without_its_driver_and_vfio_pci_does_not_take_it() -> None:
    with made(1), as_before(PF):
        write(path(PF, "driver/unbind"), PF)
        assert (link(path(PF, "virtfn0")), read(NUMVFS)) == (VF, "1")
        with pytest.raises(FileNotFoundError):
            write(NUMVFS, "0")
        assert os.path.exists(path(VF))
        write(override(PF), "vfio-pci")
        with refused(errno.EBUSY):
            write(VFIO_BIND, PF)
        assert driver(PF) is None


def test_vfs_go_when_their_holder_lets_go_and_much_waits_with_them() -> None:
    """``sriov_numvfs`` of the PF and every rescan on all kernels, up to 6.1 two more files of PF and VF."""
    with made(1):
        to_vfio(VF)
        with GroupDevice(VF, number_of(VF)):
            remover = writing(NUMVFS, "0")
            await_sleep(remover, UNBIND)
            assert (link(path(PF, "virtfn0")), os.path.exists(path(VF)), driver(VF)) == (None, True, None)
            files = ("sriov_numvfs", "sriov_totalvfs", "driver_override", "uevent")
            of_pf = {name: reading(path(PF, name)) for name in files}
            of_vf = {name: reading(path(VF, name)) for name in ("driver_override", "uevent", "resource")}
            rescan = writing(f"{BUS}/rescan", "1")
            locked = {"driver_override", "uevent"} if READERS_WAIT else set()
            assert those_that_wait(of_pf) == {"sriov_numvfs", *locked}
            assert those_that_wait(of_vf) == locked
            assert comes_to_wait(rescan, "rescan_store")
            every, _ = prompt_looks(("list",), ("show", PF))
        (pf,) = (one for one in every.document["devices"] if one["address"] == PF)
        assert "sriov_numvfs" in pf["unavailable"]
        assert pf["sriov_numvfs"] is None
        assert {program.wait(30) for program in (remover, rescan, *of_pf.values())} == {0}
        for reader in of_vf.values():
            reader.wait(30)  # one that comes through when the VF is gone has ENODEV
        assert not os.path.exists(path(VF))


# Trap 9: a PF on vfio-pci.


@pytest.fixture
def pf() -> Iterator[GroupDevice]:
    """The PF on vfio-pci, which may make VFs, and open: each open and close resets it, and ends its VFs."""
    with as_before(PF):
        to_vfio(PF)
        with pytest.raises(FileNotFoundError):
            write(NUMVFS, "1")
        write(ENABLE_SRIOV, "Y")
        try:
            with GroupDevice(PF, number_of(PF)) as opened:
                yield opened
        finally:
            write(ENABLE_SRIOV, "N")


def assert_closed_to(number: int, token: uuid.UUID | None) -> None:
    with pytest.raises(KernelError, match="VF token is missing or wrong") as caught:
        GroupDevice(VF, number, token)
    assert (caught.value.operation, caught.value.errno) == ("VFIO_GROUP_GET_DEVICE_FD", errno.EACCES)


def test_a_vf_of_a_pf_on_vfio_pci_follows_it_and_opens_by_the_token_alone(pf: GroupDevice) -> None:
    """It has the override from the start. Nobody knows the token before the PF's owner has set it."""
    first, second = uuid.uuid4(), uuid.uuid4()
    write(NUMVFS, "1")
    try:
        assert (read(override(VF)), driver(VF)) == ("vfio-pci", "vfio-pci")
        number = number_of(VF)
        assert_closed_to(number, None)
        assert_closed_to(number, uuid.UUID(int=0))
        Features(pf.file).set_vf_token(first)
        assert_closed_to(number, None)
        assert_closed_to(number, second)
        with GroupDevice(VF, number, first) as vf:
            assert vf.file.name == VF
            Features(pf.file).set_vf_token(second)
            assert read_device_info(vf.file).num_regions == 9, "it stays open"
            with pytest.raises(UnsupportedError, match="no VF token"):
                Features(vf.file).set_vf_token(first)
        assert_closed_to(number, first)
        GroupDevice(VF, number, second).close()
    finally:
        write(NUMVFS, "0")


def test_the_command_line_opens_a_vf_by_its_token_in_each_mode(pf: GroupDevice) -> None:
    token = uuid.uuid4()
    peek = ("peek", VF, "config", "0")
    write(NUMVFS, "1")
    try:
        Features(pf.file).set_vf_token(token)
        shown = done("show", VF)["device"]
        ids = shown["device_id"] << 16 | shown["vendor_id"]
        without = vfiotool(*peek, "--iommu", "type1v2")
        assert (without.status, without.stdout) == (1, "")
        assert "VF token is missing" in without.stderr
        assert "--vf-token" in without.stderr
        assert done(*peek, "--vf-token", str(token))["value"] == ids
        for mode in offered_modes(VF):
            result = vfiotool(*peek, "--vf-token", str(token), "--iommu", mode.value)
            if mode is IommuMode.IOMMUFD and RELEASE < (6, 18):
                assert (result.status, result.stdout) == (4, "")
                assert "takes no VF token" in result.stderr
            else:
                assert result.stdout == f"0x00000000: {ids:#010x}\n", result.stderr
    finally:
        write(NUMVFS, "0")


def test_a_run_of_stress_opens_a_vf_by_its_token(pf: GroupDevice, tmp_path: Path) -> None:
    token = uuid.uuid4()
    words = ("stress", "dma", VF, "--cycles", "1", "--seed", "1", "--report", str(tmp_path / "report"))
    write(NUMVFS, "1")
    try:
        Features(pf.file).set_vf_token(token)
        assert vfiotool(*words).status == 3
        result = vfiotool(*words, "--vf-token", str(token))
        assert result.status == 0, result
        report = (tmp_path / "report/report.json").read_text()
        assert '"GET_DEVICE_FD"' in report or '"BIND_IOMMUFD"' in report
        assert str(token) not in report
    finally:
        write(NUMVFS, "0")
