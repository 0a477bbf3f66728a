"""The pytest plugin for tests of a driver; docs/testing.md documents its use.

Every run of pytest loads the plugin if vfiotool is installed. Therefore it imports nothing else until a test
uses one of its fixtures.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from vfiotool.testing.fake_device import FakeDevice
    from vfiotool.vfio.device import Device
    from vfiotool.vfio.dma.arena import Arena

_BEST = "auto"
_CONTAINERS = ("type1", "type1v2")
_OF_IOMMUFD = ("compat-type1", "compat-type1v2", "iommufd")
_NONE = "no --vfio-device ADDRESS was given"
_ARENA = 1 << 20
_REGISTERS = ("[vfio-device]", "/dev/vfio/devices/", "/memfd:fake ")
_OF_DEVICES = ("/dev/vfio/", "/dev/iommu", "anon_inode:[vfio", "anon_inode:[eventfd]", "/memfd:fake ")
_MARKER = "vfio_arena(size=..., **options): size and options of the test's vfio_arena, as for Dma.arena"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the command line options."""
    group = parser.getgroup("vfiotool", "devices through VFIO (vfiotool)")
    group.addoption(
        "--vfio-device",
        metavar="ADDRESS",
        action="append",
        default=[],
        help="run the tests of a device on this device (0000:03:00.0), bound to vfio-pci meanwhile; "
        "repeat the option for several devices",
    )
    group.addoption(
        "--vfio-iommu",
        choices=(_BEST, *_CONTAINERS, *_OF_IOMMUFD, "noiommu"),
        default=_BEST,
        help="IOMMU mode to open the device in (default: auto, the best mode that the kernel offers)",
    )
    group.addoption(
        "--vf-token",
        metavar="UUID",
        type=_uuid,
        help="VF token of the device, for a VF whose PF is on vfio-pci too",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests that use a device by device, and tests that use an IOMMU mode by mode."""
    addresses = metafunc.config.getoption("vfio_device")
    if "vfio_address" in metafunc.fixturenames and addresses:
        metafunc.parametrize("vfio_address", addresses, indirect=True)
    if "vfio_iommu_mode" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("vfio_iommu")
        modes = _possible_modes(bool(addresses)) if wanted == _BEST else [wanted]
        metafunc.parametrize("vfio_iommu_mode", modes, indirect=True)


@pytest.fixture(scope="session")
def vfio_fake() -> FakeDevice | None:
    """The model to use if no device is given: None, unless a conftest.py overrides this fixture."""
    return None


@pytest.fixture(scope="session")
def vfio_bound(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The addresses of the given devices, bound to vfio-pci during the session and restored at its end.

    If pytest is killed during the session, ``vfiotool restore`` restores the devices.
    """
    addresses = request.config.getoption("vfio_device")
    if not addresses:
        yield []
        return
    from vfiotool.binding.operations import bound

    with bound(*addresses):
        yield addresses


@pytest.fixture
def vfio_address(
    request: pytest.FixtureRequest, vfio_bound: list[str], vfio_fake: FakeDevice | None
) -> Iterator[str]:
    """The address of a device that is bound to vfio-pci, or of the fake.

    The test is skipped if there is neither. It fails if it leaves file descriptors of the device open.
    """
    address = getattr(request, "param", None) or (vfio_fake.address if vfio_fake is not None else None)
    if address is None:
        pytest.skip(_NONE)
    before = _open_files()
    yield address
    left = _open_files() - before
    if left:
        pytest.fail(f"the test left open: {', '.join(sorted(name for _fd, name in left))}", pytrace=False)


@pytest.fixture
def vfio_iommu_mode(request: pytest.FixtureRequest, vfio_address: str) -> str:
    """The name of an IOMMU mode. A test that uses it runs once in each mode that can open its device."""
    mode = str(request.param)
    if request.config.getoption("vfio_device") and request.config.getoption("vfio_iommu") == _BEST:
        from vfiotool.vfio.iommu import offered_modes

        if mode not in offered_modes(vfio_address):
            pytest.skip(f"this kernel cannot open {vfio_address} in mode {mode}")
    return mode


@pytest.fixture
def vfio_device(
    request: pytest.FixtureRequest, vfio_address: str, vfio_fake: FakeDevice | None
) -> Iterator[Device]:
    """The open device, in the mode of ``vfio_iommu_mode`` if the test uses it, else of ``--vfio-iommu``.

    The test fails if it leaves memory or registers mapped, or interrupts enabled. If the device supports it,
    the kernel resets the device at each open, so that no test sees the state of an earlier test.
    """
    wanted = mode = request.config.getoption("vfio_iommu")
    if "vfio_iommu_mode" in request.fixturenames:
        mode = request.getfixturevalue("vfio_iommu_mode")
    is_real = bool(request.config.getoption("vfio_device"))
    token = request.config.getoption("vf_token") if is_real else None
    windows = _mapped_registers()
    opener = _opened if token is None or wanted == mode else _opened_or_skipped
    with opener(vfio_address, mode, None if is_real else vfio_fake, token) as device:
        yield device
        left = _left_by(device)
        if _mapped_registers() > windows:
            left.append("mapped registers")
    if left:
        pytest.fail(f"the test did not close: {', '.join(left)}", pytrace=False)


@pytest.fixture
def vfio_arena(request: pytest.FixtureRequest, vfio_device: Device) -> Iterator[Arena]:
    """DMA memory for many small buffers: 1 MiB, unless the test has the marker ``vfio_arena``."""
    marker = request.node.get_closest_marker("vfio_arena")
    options = {"size": _ARENA, **(marker.kwargs if marker is not None else {})}
    with vfio_device.dma.arena(**options) as arena:
        yield arena


def _uuid(text: str) -> UUID:
    from argparse import ArgumentTypeError
    from uuid import UUID

    try:
        return UUID(text)
    except ValueError:
        raise ArgumentTypeError(f"'{text}' is not a UUID") from None


def _opened(address: str, mode: str, fake: FakeDevice | None, vf_token: UUID | None) -> Device:
    if fake is not None:
        from vfiotool.testing.fake_opening import open_fake

        return open_fake(fake, iommu=mode)
    from vfiotool.vfio.device import open_device

    return open_device(address, iommu=mode, vf_token=vf_token)


def _opened_or_skipped(address: str, mode: str, fake: FakeDevice | None, vf_token: UUID | None) -> Device:
    """Open a device, or skip a test of a mode that takes no VF token: iommufd before Linux 6.18."""
    from vfiotool.errors import UnsupportedError

    try:
        return _opened(address, mode, fake, vf_token)
    except UnsupportedError as error:
        pytest.skip(f"this kernel cannot open {address} in mode {mode} with a VF token: {error}")


def _left_by(device: Device) -> list[str]:
    """Return descriptions of the memory mapped and the interrupts enabled on an open device."""
    irqs = device.irqs
    kinds = {"INTx": irqs.intx, "MSI": irqs.msi, "MSI-X": irqs.msix}
    enabled = [f"{name} enabled" for name, irq in kinds.items() if not device.closed and irq.enabled]
    return [*map(repr, device.dma.mapped), *enabled]


def _possible_modes(is_real: bool) -> list[str]:
    """Return the candidate modes; which of them can open a device is only known after it is bound."""
    has_iommufd = not is_real or os.path.exists("/dev/iommu")
    return [*_CONTAINERS, *(_OF_IOMMUFD if has_iommufd else ())]


def _mapped_registers() -> int:
    """Return the number of mappings of device registers in this process."""
    with open("/proc/self/maps") as lines:
        return sum(any(name in line for name in _REGISTERS) for line in lines)


def _open_files() -> set[tuple[str, str]]:
    """Return descriptor and target of each open file of real and fake devices, including their eventfds."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the folder itself
            continue
        if name.startswith(_OF_DEVICES):
            found.add((fd, name))
    return found
