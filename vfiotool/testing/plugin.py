"""A pytest plugin for those who test a driver: docs/testing.md tells how to use it.

Every pytest loads it where vfiotool is installed, so it imports nothing more until a test asks for one
of its fixtures.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

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
_MARKER = "vfio_arena(size=..., **options): what the vfio_arena of a test is made of, as Dma.arena takes it"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("vfiotool", "devices through VFIO (vfiotool)")
    group.addoption(
        "--vfio-device",
        metavar="ADDRESS",
        action="append",
        default=[],
        help="run the tests that need a device on this one (0000:03:00.0), bound to vfio-pci meanwhile; "
        "given more than once, on each",
    )
    group.addoption(
        "--vfio-iommu",
        choices=(_BEST, *_CONTAINERS, *_OF_IOMMUFD, "noiommu"),
        default=_BEST,
        help="how it is opened (default: auto, the best that the kernel offers)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest of the marker."""
    config.addinivalue_line("markers", _MARKER)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses a device on each device, and what uses a mode in each that there may be."""
    addresses = metafunc.config.getoption("vfio_device")
    if "vfio_address" in metafunc.fixturenames and addresses:
        metafunc.parametrize("vfio_address", addresses, indirect=True)
    if "vfio_iommu_mode" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("vfio_iommu")
        modes = _possible_modes(bool(addresses)) if wanted == _BEST else [wanted]
        metafunc.parametrize("vfio_iommu_mode", modes, indirect=True)


@pytest.fixture(scope="session")
def vfio_fake() -> FakeDevice | None:
    """A model to test with where no device is given; a conftest.py may override it to return one."""
    return None


@pytest.fixture(scope="session")
def vfio_bound(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The addresses given, bound to vfio-pci as long as the session lasts; then all is as it was.

    Where pytest is killed meanwhile, ``vfiotool restore`` puts them back.
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
    """The address of a device that is bound to vfio-pci, or of the fake; the test leaves nothing of it open.

    It is skipped where there is neither.
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
    """The name of an IOMMU mode: a test that uses it runs in each mode in which its device can be opened."""
    mode = str(request.param)
    if request.config.getoption("vfio_device") and request.config.getoption("vfio_iommu") == _BEST:
        from vfiotool.vfio.iommu import offered_modes

        if mode not in offered_modes(vfio_address):
            pytest.skip(f"this kernel does not open {vfio_address} in mode {mode}")
    return mode


@pytest.fixture
def vfio_device(
    request: pytest.FixtureRequest, vfio_address: str, vfio_fake: FakeDevice | None
) -> Iterator[Device]:
    """The device, opened: in the test's ``vfio_iommu_mode``, if it uses that, else as ``--vfio-iommu`` says.

    What the test has mapped or enabled and not closed fails it. The kernel resets a device when it is opened,
    if it can, so that no test sees what another one left in it.
    """
    mode = request.config.getoption("vfio_iommu")
    if "vfio_iommu_mode" in request.fixturenames:
        mode = request.getfixturevalue("vfio_iommu_mode")
    is_real = bool(request.config.getoption("vfio_device"))
    windows = _mapped_registers()
    with _opened(vfio_address, mode, None if is_real else vfio_fake) as device:
        yield device
        left = _left_by(device)
        if _mapped_registers() > windows:
            left.append("mapped registers")
    if left:
        pytest.fail(f"the test left what it must close: {', '.join(left)}", pytrace=False)


@pytest.fixture
def vfio_arena(request: pytest.FixtureRequest, vfio_device: Device) -> Iterator[Arena]:
    """Memory that the device reaches, for many small buffers: 1 MiB, unless marked with ``vfio_arena``."""
    marker = request.node.get_closest_marker("vfio_arena")
    options = {"size": _ARENA, **(marker.kwargs if marker is not None else {})}
    with vfio_device.dma.arena(**options) as arena:
        yield arena


def _opened(address: str, mode: str, fake: FakeDevice | None) -> Device:
    if fake is not None:
        from vfiotool.testing.fake_opening import open_fake

        return open_fake(fake, iommu=mode)
    from vfiotool.vfio.opening import open_device

    return open_device(address, iommu=mode)


def _left_by(device: Device) -> list[str]:
    """Return what of an open device is still in use."""
    irqs = device.irqs
    kinds = {"INTx": irqs.intx, "MSI": irqs.msi, "MSI-X": irqs.msix}
    enabled = [f"{name} enabled" for name, irq in kinds.items() if not device.closed and irq.enabled]
    return [*map(repr, device.dma.mapped), *enabled]


def _possible_modes(is_real: bool) -> list[str]:
    """Return the modes that there may be; whether a device can be opened in one is seen once it is bound."""
    has_iommufd = not is_real or os.path.exists("/dev/iommu")
    return [*_CONTAINERS, *(_OF_IOMMUFD if has_iommufd else ())]


def _mapped_registers() -> int:
    """Return how many parts of devices this process has mapped."""
    with open("/proc/self/maps") as lines:
        return sum(any(name in line for name in _REGISTERS) for line in lines)


def _open_files() -> set[tuple[str, str]]:
    """Return what is open of devices, real and fake, and of what they signal."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the folder itself
            continue
        if name.startswith(_OF_DEVICES):
            found.add((fd, name))
    return found
