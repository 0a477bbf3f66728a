"""VF tokens and iommufd: what reaches the cdev of each kernel, and what the errors say."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.unit.conftest import Run
from vfiotool.errors import KernelError, UnsupportedError, VfioToolError
from vfiotool.stress.config import RunConfig
from vfiotool.stress.group.client import GroupClient
from vfiotool.stress.groups import find_groups, groups_of_trace
from vfiotool.stress.model.operation import Kind, Operation
from vfiotool.testing import FakeHost
from vfiotool.vfio.iommu import IommuMode, selection
from vfiotool.vfio.iommu.iommufd import Iommufd
from vfiotool.vfio.uapi import DeviceIoctl

ADDRESS = "0000:01:00.1"
TOKEN = uuid.UUID("b7a4c2d0-1e2f-4a5b-8c9d-0123456789ab")
OTHER = uuid.UUID("00000000-0000-4000-8000-000000000001")
SIZE_UP_TO_6_17 = 16


class Cdev:
    """A VF's cdev, as drivers/vfio/device_cdev.c answers a bind: ``kernel`` is old, broken or new.

    ``asks`` is the token that the PF's owner has set, None if the PF is not on vfio-pci.
    """

    name = ADDRESS

    def __init__(self, kernel: str, *, asks: uuid.UUID | None = TOKEN, driver_checks: bool = True) -> None:
        self.kernel = kernel
        self.asks = asks
        self.driver_checks = driver_checks
        self.is_open = True
        self.bound = 0
        self.attached = False

    def ioctl(self, request: DeviceIoctl, data: bytearray) -> int:
        if request is DeviceIoctl.VFIO_DEVICE_ATTACH_IOMMUFD_PT:
            self.attached = True
            return 0
        code = self.answer(data)
        if code:
            raise KernelError(code, request.name, self.name)
        self.bound += 1
        return 0

    def close(self) -> None:
        self.is_open = False

    def answer(self, question: bytearray) -> int:
        """Return the errno of a bind, or 0."""
        data = bytes(question)
        size, flags, iommufd, _, token = struct.unpack("=IIiIQ", data)
        assert size == len(data)
        if iommufd < 0:
            return errno.EINVAL
        if self.kernel == "old":
            return errno.EINVAL if flags else 0
        if self.kernel == "broken" and any(data[SIZE_UP_TO_6_17:]):
            return errno.E2BIG
        if flags & ~1:
            return errno.EINVAL
        if not self.driver_checks:
            return errno.EINVAL if flags else 0
        if not flags:
            return errno.EACCES if self.asks else 0
        if not token:
            return errno.EFAULT
        if self.asks is None:
            return errno.EINVAL
        return 0 if ctypes.string_at(token, 16) == self.asks.bytes else errno.EACCES


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Iterator[Iommufd]:
    monkeypatch.setattr("vfiotool.vfio.iommu.iommufd.fcntl.ioctl", lambda *_: 0)
    with Iommufd(os.open(os.devnull, os.O_RDWR)) as opened:
        yield opened


Opener = Callable[[Cdev, "uuid.UUID | None"], "VfioToolError | None"]


@pytest.fixture
def error_of(space: Iommufd, monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Open a cdev with a token, and return the error, or None: then the device is bound and attached."""

    def open_cdev(cdev: Cdev, token: uuid.UUID | None) -> VfioToolError | None:
        monkeypatch.setattr("vfiotool.vfio.iommu.iommufd._open_cdev", lambda address: cdev)
        try:
            space.open_device(ADDRESS, token)
        except VfioToolError as error:
            assert (cdev.is_open, cdev.attached, cdev.bound) == (False, False, 0)
            return error
        assert (cdev.is_open, cdev.attached, cdev.bound) == (True, True, 1)
        return None

    return open_cdev


def test_a_cdev_of_a_new_kernel_opens_by_the_token_alone(error_of: Opener) -> None:
    assert error_of(Cdev("new"), TOKEN) is None
    error = error_of(Cdev("new", asks=OTHER), TOKEN)
    assert isinstance(error, KernelError)
    assert error.errno == errno.EACCES
    assert "VF token is missing or wrong" in str(error)
    assert str(TOKEN) not in f"{error} {error.hint}"


def test_a_new_kernel_asks_for_the_token(error_of: Opener) -> None:
    error = error_of(Cdev("new"), None)
    assert error is not None
    assert "VF token is missing" in str(error)
    assert "--vf-token" in error.hint
    assert "vf_token=" in error.hint


@pytest.mark.parametrize("kernel", ["old", "broken", "new"])
def test_no_token_is_needed_where_the_kernel_asks_for_none(error_of: Opener, kernel: str) -> None:
    assert error_of(Cdev(kernel, asks=None), None) is None


@pytest.mark.parametrize(
    "cdev", [Cdev("old"), Cdev("broken"), Cdev("new", driver_checks=False)], ids=["old", "broken", "driver"]
)
def test_a_cdev_that_takes_no_token_is_not_called_in_use(error_of: Opener, cdev: Cdev) -> None:
    error = error_of(cdev, TOKEN)
    assert isinstance(error, UnsupportedError)
    assert str(error) == f"the cdev of {ADDRESS} takes no VF token"
    assert "type1v2" in error.hint


def test_a_token_for_a_device_without_one_is_the_callers_mistake(error_of: Opener) -> None:
    error = error_of(Cdev("new", asks=None), TOKEN)
    assert isinstance(error, KernelError)
    assert error.errno == errno.EINVAL
    assert "takes no VF token" in str(error)
    assert "only for a VF whose PF is also on vfio-pci" in error.hint


@pytest.mark.parametrize(
    ("has_type1", "mode"), [(True, IommuMode.TYPE1V2), (False, IommuMode.IOMMUFD)], ids=["type1", "iommufd"]
)
def test_auto_with_a_token_prefers_the_mode_that_all_kernels_support(
    monkeypatch: pytest.MonkeyPatch, has_type1: bool, mode: IommuMode
) -> None:
    monkeypatch.setattr(selection, "_offers_type1", lambda: has_type1)
    monkeypatch.setattr(selection, "cdev_of", lambda address: "/dev/vfio/devices/vfio0")
    monkeypatch.setattr(selection, "IOMMUFD", os.devnull)
    assert selection.best_with_token(ADDRESS) is mode


# Stress


PF, VF, NIC = "0000:01:00.0", ADDRESS, "0000:02:00.0"


@pytest.fixture
def vf_host(host: FakeHost) -> FakeHost:
    """A VF and its PF on vfio-pci, and another device."""
    for driver in ("vfio-pci", "e1000e"):
        host.add_driver(driver)
    host.add_device(PF, driver="vfio-pci", group=1, sriov_totalvfs="2", sriov_numvfs="1")
    host.add_device(VF, driver="vfio-pci", group=2, physfn=PF)
    host.add_device(NIC, driver="e1000e", group=3)
    return host


def test_a_run_has_the_token_of_each_vf_whose_pf_is_on_vfio(vf_host: FakeHost, state_dir: str) -> None:
    tree = vf_host.tree
    vf, nic = find_groups(tree, [VF, NIC], state_dir, TOKEN)
    assert (vf.tokens, nic.tokens) == ({VF: TOKEN}, {})
    trace = {"units": [{"members": [NIC]}, {"members": [VF]}]}
    assert [one.tokens for one in groups_of_trace(tree, trace, state_dir, TOKEN)] == [{}, {VF: TOKEN}]
    vf_host.set_driver(PF, None)
    assert find_groups(tree, [VF], state_dir)[0].tokens == {}


def test_a_run_without_the_token_is_refused_before_it_starts(vfiotool: Run, vf_host: FakeHost) -> None:
    result = vfiotool("stress", "dma", VF)
    assert (result.status, result.stdout) == (3, "")
    assert f"{VF} opens only with a VF token: its PF {PF} is on vfio-pci" in result.stderr
    assert "--vf-token" in result.stderr
    assert vf_host.writes == []


def test_a_token_that_no_device_of_a_run_takes_is_refused(vfiotool: Run, vf_host: FakeHost) -> None:
    result = vfiotool("stress", "dma", NIC, "--vf-token", str(TOKEN))
    assert (result.status, result.stdout) == (2, "")
    assert "no device of the run takes a VF token" in result.stderr
    assert vf_host.writes == []


def test_the_report_of_a_run_does_not_have_the_token(
    vfiotool: Run, vf_host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunConfig] = []
    monkeypatch.setattr("vfiotool.cli.stress._execute", lambda config, as_json: seen.append(config))
    assert vfiotool("stress", "dma", VF, "--vf-token", str(TOKEN), "--seed", "1").status == 0
    (config,) = seen
    assert config.reproduce == f"vfiotool stress dma {VF} --seed 1 --cycles 10 --vf-token UUID"


def test_a_client_opens_a_vf_by_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[bytes] = []

    def ioctl(fd: int, request: int, name: bytes) -> int:
        names.append(bytes(name))
        raise OSError(errno.EIO, "refused")

    monkeypatch.setattr("vfiotool.stress.group.fds.fcntl.ioctl", ioctl)
    client = GroupClient(2, [VF, NIC], {}, {VF: TOKEN})
    client.opened["group"] = [-1]
    for member in (0, 1):
        assert client.do(Operation(Kind.GET_DEVICE_FD, member=member)) == (errno.EIO, 0)
    assert names == [f"{VF} vf_token={TOKEN}\0".encode(), f"{NIC}\0".encode()]


@pytest.mark.parametrize("kernel", ["old", "new"])
def test_a_client_binds_a_vf_on_each_kernel(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    cdev, codes = Cdev(kernel), []

    def ioctl(fd: int, request: int, question: bytes) -> int:
        assert (fd, request) == (7, DeviceIoctl.VFIO_DEVICE_BIND_IOMMUFD)
        codes.append(cdev.answer(bytearray(question)))
        if codes[-1]:
            raise OSError(codes[-1], "refused")
        return 0

    monkeypatch.setattr("vfiotool.stress.group.fds.fcntl.ioctl", ioctl)
    monkeypatch.setattr(GroupClient, "ioas", lambda client: 1)
    client = GroupClient(2, [VF], {}, {VF: TOKEN})
    client.opened |= {"iommufd": [8], f"cdev {VF}": [7]}
    assert client.do(Operation(Kind.BIND_IOMMUFD)) == (0, 0)
    assert codes == [errno.EINVAL if kernel == "old" else errno.EFAULT, 0]
