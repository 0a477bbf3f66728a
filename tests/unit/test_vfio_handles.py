"""vfiotool.vfio without a device: the life of a handle, errors, and hostile replies.

A fake shim returns the results. tests/contract/test_vfio.py has the replies of a real kernel.
"""

from __future__ import annotations

import ast
import errno
import mmap
import os
import re
import struct
import uuid
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vfiotool.vfio
from tests.support.strategies import examples
from vfiotool import _shim
from vfiotool.errors import (
    ClosedError,
    DeviceNotFoundError,
    DmaMapError,
    GroupNotViableError,
    KernelError,
    UnsupportedError,
    VfioToolError,
)
from vfiotool.vfio import Container, Group, GroupFlags, IommuType, KernelDeviceFile, MmapArea
from vfiotool.vfio.device_info import read_device_info, read_irq_info, read_region_info
from vfiotool.vfio.handle import Handle
from vfiotool.vfio.info import (
    IovaRange,
    parse_device_info,
    parse_irq_info,
    parse_region_info,
    parse_type1_info,
)
from vfiotool.vfio.info_ioctl import MAX_SIZE, InfoReply, query_info
from vfiotool.vfio.iommu import IommuMode
from vfiotool.vfio.iommu.type1 import Type1
from vfiotool.vfio.uapi import (
    DeviceIoctl,
    vfio_device_info,
    vfio_iommu_type1_info,
    vfio_irq_info,
    vfio_region_info,
)

ADDRESS = "0000:00:10.0"
PAGE = mmap.PAGESIZE
REAL = _shim.lib
TOKEN = uuid.UUID("B7A4C2D0-1E2F-4A5B-8C9D-0123456789AB")


class FakeShim:
    """A fake C shim: returns fds of /dev/null, and the results that a test sets."""

    def __init__(self) -> None:
        self.answers: dict[str, int] = {}
        self.calls: list[tuple[str, tuple[object, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        def function(*arguments: object) -> int:
            self.calls.append((name, arguments))
            if name not in self.answers and name in ("vt_open", "vt_group_device_fd"):
                return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            return self.answers.get(name, 0)

        return function

    def called(self, name: str) -> list[tuple[object, ...]]:
        return [arguments for called, arguments in self.calls if called == name]


@pytest.fixture
def shim(monkeypatch: pytest.MonkeyPatch) -> FakeShim:
    """A fake shim whose kernel accepts all calls: groups are viable, and type1v2 exists."""
    fake = FakeShim()
    fake.answers = {"vt_group_status": GroupFlags.VIABLE, "vt_container_check_extension": 1}
    for module in ("container", "nodes", "iommu.address_space", "iommu.type1"):
        monkeypatch.setattr(f"vfiotool.vfio.{module}.lib", fake)
    monkeypatch.setattr("vfiotool.vfio.iommu.type1.group_of", lambda address: 7)
    monkeypatch.setattr("vfiotool.vfio.group.lib", fake)
    return fake


@pytest.fixture
def container(shim: FakeShim) -> Iterator[Container]:
    with Container() as opened:
        yield opened


@pytest.fixture
def group(shim: FakeShim) -> Iterator[Group]:
    with Group(7) as opened:
        yield opened


def null() -> int:
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def open_fds() -> dict[str, str]:
    """Return the target of each open fd, except that of the directory that is read."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
    return found


# The life of a handle


def test_close_closes_the_fd_once_and_then_does_nothing() -> None:
    before = open_fds()
    handle = Handle(null(), "group 7")
    assert open_fds() != before
    handle.close()
    assert open_fds() == before
    handle.close()
    assert handle.closed


def test_a_second_close_leaves_a_reused_descriptor_open() -> None:
    handle = Handle(null(), "group 7")
    number = handle.fileno()
    handle.close()
    with Handle(null(), "group 8") as other:
        assert other.fileno() == number
        handle.close()
        os.fstat(other.fileno())


def test_with_closes_also_on_error() -> None:
    handle = Handle(null(), "group 7")
    with pytest.raises(KeyError), handle:
        raise KeyError
    assert handle.closed


def test_a_lost_handle_warns_and_is_closed() -> None:
    before = open_fds()
    lost = [Handle(null(), "group 7")]
    with pytest.warns(ResourceWarning, match=r"group 7.*was never closed"):
        lost.clear()
    assert open_fds() == before


CLOSED_USES: list[tuple[str, Callable[[Container, Group, KernelDeviceFile], object]]] = [
    ("Container.fileno", lambda c, g, d: c.fileno()),
    ("Container.api_version", lambda c, g, d: c.api_version()),
    ("Container.check_extension", lambda c, g, d: c.check_extension(IommuType.TYPE1)),
    ("Container.set_iommu", lambda c, g, d: c.set_iommu(IommuType.TYPE1)),
    ("Container.type1_info", lambda c, g, d: c.type1_info()),
    ("Container.__enter__", lambda c, g, d: c.__enter__()),
    ("Group.status", lambda c, g, d: g.status()),
    ("Group.set_container", lambda c, g, d: g.set_container(c)),
    ("Group.unset_container", lambda c, g, d: g.unset_container()),
    ("Group.open_device", lambda c, g, d: g.open_device("0000:00:10.0")),
    ("KernelDeviceFile.fileno", lambda c, g, d: d.fileno()),
    ("KernelDeviceFile.ioctl", lambda c, g, d: d.ioctl(DeviceIoctl.VFIO_DEVICE_RESET, bytearray())),
    ("KernelDeviceFile.pread", lambda c, g, d: d.pread(4, 0)),
    ("KernelDeviceFile.pwrite", lambda c, g, d: d.pwrite(b"1234", 0)),
    ("KernelDeviceFile.map", lambda c, g, d: d.map(0, PAGE, write=False)),
    ("read_device_info", lambda c, g, d: read_device_info(d)),
    ("read_region_info", lambda c, g, d: read_region_info(d, 0)),
    ("read_irq_info", lambda c, g, d: read_irq_info(d, 0)),
]


@pytest.mark.parametrize("use", [use for _, use in CLOSED_USES], ids=[name for name, _ in CLOSED_USES])
def test_a_closed_handle_raises_closed_error_without_a_call(
    shim: FakeShim, use: Callable[[Container, Group, KernelDeviceFile], object]
) -> None:
    container, group, device = Container(), Group(7), KernelDeviceFile(null(), ADDRESS)
    for handle in (container, group, device):
        handle.close()
    shim.calls.clear()
    with pytest.raises(ClosedError, match="is closed"):
        use(container, group, device)
    assert shim.calls == []


def test_a_closed_container_cannot_be_set(shim: FakeShim, group: Group) -> None:
    container = Container()
    container.close()
    with pytest.raises(ClosedError):
        group.set_container(container)
    assert not shim.called("vt_group_set_container")


# Opening, and its errors


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENODEV])
def test_a_kernel_without_vfio_is_unsupported(shim: FakeShim, code: int) -> None:
    shim.answers["vt_open"] = -code
    with pytest.raises(UnsupportedError, match="no VFIO") as caught:
        Container()
    assert "modprobe vfio-pci" in caught.value.hint


def test_a_container_of_an_unknown_version_is_unsupported_and_closed(shim: FakeShim) -> None:
    before = open_fds()
    shim.answers["vt_container_api_version"] = 1
    with pytest.raises(UnsupportedError, match="version 1"):
        Container()
    assert open_fds() == before


def test_a_group_that_is_open_elsewhere_is_in_use(shim: FakeShim) -> None:
    shim.answers["vt_open"] = -errno.EBUSY
    with pytest.raises(KernelError, match="in use") as caught:
        Group(7)
    error = caught.value
    assert (error.operation, error.subject, error.errno) == ("open", "/dev/vfio/7", errno.EBUSY)
    assert isinstance(error, OSError)


def test_a_missing_group_and_a_group_without_a_node_are_different_errors(
    shim: FakeShim, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shim.answers["vt_open"] = -errno.ENOENT
    monkeypatch.setattr("vfiotool.vfio.group.GROUPS", str(tmp_path))
    with pytest.raises(DeviceNotFoundError, match="no IOMMU group 7"):
        Group(7)
    (tmp_path / "7").mkdir()
    with pytest.raises(KernelError, match="/dev/vfio/7") as caught:
        Group(7)
    assert caught.value.errno == errno.ENOENT
    assert "'vfiotool show'" in caught.value.hint


def test_a_group_that_is_not_viable_is_never_set_to_a_container(
    shim: FakeShim, container: Container, group: Group
) -> None:
    shim.answers["vt_group_status"] = 0
    with pytest.raises(GroupNotViableError, match="group 7 is not viable") as caught:
        group.set_container(container)
    assert "'vfiotool groups'" in caught.value.hint
    assert not shim.called("vt_group_set_container")


def test_einval_of_a_device_is_explained_by_viability(shim: FakeShim, group: Group) -> None:
    shim.answers["vt_group_device_fd"] = -errno.EINVAL
    with pytest.raises(KernelError, match="no container") as caught:
        group.open_device("0000:00:10.0")
    assert caught.value.operation == "VFIO_GROUP_GET_DEVICE_FD"
    shim.answers["vt_group_status"] = GroupFlags.CONTAINER_SET
    with pytest.raises(GroupNotViableError):
        group.open_device("0000:00:10.0")


@pytest.mark.parametrize("name", ["", "0000:00:10.0\0", "\0"])
def test_a_name_with_nul_reaches_no_kernel(shim: FakeShim, group: Group, name: str) -> None:
    with pytest.raises(DeviceNotFoundError):
        group.open_device(name)
    assert not shim.called("vt_group_device_fd")


def test_the_token_follows_the_name_and_is_in_no_message(shim: FakeShim, group: Group) -> None:
    group.open_device("0000:01:00.1", TOKEN).close()
    assert shim.called("vt_group_device_fd") == [
        (group.fileno(), b"0000:01:00.1 vf_token=b7a4c2d0-1e2f-4a5b-8c9d-0123456789ab")
    ]
    shim.answers["vt_group_device_fd"] = -errno.EACCES
    with pytest.raises(KernelError, match="VF token is missing or wrong") as caught:
        group.open_device("0000:01:00.1", TOKEN)
    assert caught.value.subject == "0000:01:00.1 of group 7"
    assert "vf_token" in caught.value.hint
    assert str(TOKEN) not in f"{caught.value} {caught.value.hint}"


STEPS = (
    "vt_group_set_container",
    "vt_container_set_iommu",
    "vt_group_status",
    "vt_group_device_fd",
)


@pytest.mark.parametrize("step", STEPS)
def test_a_type1_that_fails_to_open_a_device_leaves_nothing_open(shim: FakeShim, step: str) -> None:
    before = open_fds()
    space = Type1(IommuMode.TYPE1V2)
    shim.answers[step] = -errno.EIO
    with pytest.raises(KernelError):
        space.open_device(ADDRESS)
    assert not space.attached
    space.close()
    assert open_fds() == before


def test_a_type1_closes_the_group_with_the_last_of_its_devices(shim: FakeShim) -> None:
    before = open_fds()
    space = Type1(IommuMode.TYPE1V2)
    emptied: list[bool] = []
    space.on_emptied = lambda: emptied.append(space.attached)
    first, second = space.open_device(ADDRESS), space.open_device(ADDRESS)
    assert len(shim.called("vt_group_set_container")) == len(shim.called("vt_container_set_iommu")) == 1
    first.close()
    assert (space.attached, emptied) == (True, [])
    second.revoke("a test requested it")
    assert (space.attached, emptied) == (False, [False])
    second.close()
    assert emptied == [False]
    third = space.open_device(ADDRESS)
    assert len(shim.called("vt_container_set_iommu")) == 2, "the kernel unsets the IOMMU with the last group"
    third.close()
    space.close()
    assert open_fds() == before


# Replies of the kernel


def capability(kind: int, following: int, payload: bytes, version: int = 1) -> bytes:
    return struct.pack("=HHI", kind, version, following) + payload


def answer(data: bytes) -> InfoReply:
    return InfoReply(data, "VFIO_DEVICE_GET_REGION_INFO", "0000:00:10.0")


def region(flags: int, cap_offset: int, size: int, caps: bytes = b"") -> InfoReply:
    return answer(struct.pack("=IIIIQQ", 32 + len(caps), flags, 2, cap_offset, size, 0x200) + caps)


def assert_malformed(parse: Callable[[], object]) -> None:
    with pytest.raises(KernelError, match=r"VFIO_.*format") as caught:
        parse()
    assert caught.value.errno == errno.EBADMSG
    assert caught.value.hint


def test_query_info_grows_to_the_size_that_the_kernel_needs() -> None:
    sizes = []

    def kernel(data: bytearray) -> None:
        sizes.append(len(data))
        assert struct.unpack_from("=I", data)[0] == len(data)
        assert struct.unpack_from("=I", data, 8)[0] == 2, "the request is kept"
        struct.pack_into("=I", data, 0, 100)

    found = query_info(kernel, vfio_region_info(index=2), "VFIO_DEVICE_GET_REGION_INFO", "0000:00:10.0")
    assert sizes == [32, 100]
    assert len(found.data) == 100


def test_query_info_passes_the_errno_on() -> None:
    def kernel(data: bytearray) -> None:
        raise OSError(errno.EINVAL, "no")

    with pytest.raises(KernelError) as caught:
        query_info(kernel, vfio_irq_info(index=9), "VFIO_DEVICE_GET_IRQ_INFO", "0000:00:10.0")
    error = caught.value
    assert (error.errno, error.operation) == (errno.EINVAL, "VFIO_DEVICE_GET_IRQ_INFO")


@pytest.mark.parametrize("grow", [lambda size: size + 1, lambda size: MAX_SIZE + 1])
def test_query_info_gives_up_if_the_size_always_grows(grow: Callable[[int], int]) -> None:
    sizes = []

    def kernel(data: bytearray) -> None:
        sizes.append(len(data))
        struct.pack_into("=I", data, 0, grow(len(data)))

    assert_malformed(lambda: query_info(kernel, vfio_irq_info(), "VFIO_DEVICE_GET_IRQ_INFO", "x"))
    assert len(sizes) <= 8


def test_a_region_with_all_its_capabilities() -> None:
    sparse = capability(1, 80, struct.pack("=II4Q", 2, 0, 0, 0x1000, 0x3000, 0x1000))
    kind = capability(2, 96, struct.pack("=II", 0x80008086, 1))
    caps = sparse + kind + capability(3, 0, b"")
    found = parse_region_info(region(0xF, 32, 0x4000, caps))
    assert (found.index, found.size, found.offset) == (2, 0x4000, 0x200)
    assert found.mmap_areas == (MmapArea(0, 0x1000), MmapArea(0x3000, 0x1000))
    assert found.type == (0x80008086, 1)
    assert found.msix_mappable


def test_a_region_is_mappable_as_a_whole_or_not_at_all() -> None:
    assert parse_region_info(region(7, 0, 0x4000)).mmap_areas == (MmapArea(0, 0x4000),)
    assert parse_region_info(region(3, 0, 0x4000)).mmap_areas == ()


def test_an_offset_without_the_caps_flag_is_not_followed() -> None:
    assert parse_region_info(region(7, 0xFFFFFFFF, 0x4000)).type is None


def test_a_capability_of_an_unknown_version_is_skipped() -> None:
    caps = capability(2, 0, struct.pack("=II", 1, 1), version=2)
    assert parse_region_info(region(0xF, 32, 0x4000, caps)).type is None


@pytest.mark.parametrize(
    ("cap_offset", "caps"),
    [
        (32, capability(3, 32, b"")),
        (32, capability(3, 40, b"") + capability(2, 32, bytes(8))),
        (32, capability(3, 36, b"")),
        (0xFFFFFFFF, capability(3, 0, b"")),
        (36, capability(3, 0, b"")),
        (32, capability(2, 0, bytes(4))),
        (32, capability(1, 0, struct.pack("=II", 0xFFFFFFFF, 0))),
        (32, capability(1, 0, struct.pack("=II2Q", 1, 0, 0x3000, 0x2000))),
        (32, capability(1, 0, struct.pack("=II2Q", 1, 0, 0xFFFFFFFFFFFFF000, 0x2000))),
    ],
    ids=[
        "points at itself",
        "loops",
        "next lies past the end",
        "starts far outside",
        "starts at the very end",
        "payload is cut",
        "too many areas",
        "area beyond the region",
        "area that wraps",
    ],
)
def test_a_hostile_chain_is_a_named_error(cap_offset: int, caps: bytes) -> None:
    assert_malformed(lambda: parse_region_info(region(0xF, cap_offset, 0x4000, caps)))


def test_a_device_with_endless_regions_is_a_named_error() -> None:
    data = struct.pack("=IIIII", 20, 2, 0xFFFFFFFF, 5, 0)
    assert_malformed(lambda: parse_device_info(answer(data)))


def test_atomics_of_a_device() -> None:
    caps = capability(5, 0, struct.pack("=II", 5, 0))
    found = parse_device_info(answer(struct.pack("=IIIII", 36, 0x82, 9, 5, 20) + caps))
    assert (found.num_regions, found.num_irqs, found.atomic_comp) == (9, 5, 5)


def test_type1_with_all_its_capabilities() -> None:
    ranges = struct.pack("=II4Q", 2, 0, 0, 0xFEDFFFFF, 0xFEF00000, 0x7FFFFFFFFF)
    caps = capability(1, 72, ranges) + capability(3, 0, struct.pack("=I", 65535))
    found = parse_type1_info(answer(struct.pack("=IIQII", 24 + len(caps), 3, 0x1000, 24, 0) + caps))
    assert found.page_sizes == 0x1000
    assert found.iova_ranges == (IovaRange(0, 0xFEDFFFFF), IovaRange(0xFEF00000, 0x7FFFFFFFFF))
    assert found.dma_avail == 65535


def test_type1_of_a_kernel_without_capabilities() -> None:
    found = parse_type1_info(answer(struct.pack("=IIQII", 24, 0, 0xFFFF, 0, 0)))
    assert (found.page_sizes, found.iova_ranges, found.dma_avail) == (0, None, None)


# Many small numbers: they are valid offsets, counts and ids.
words = st.one_of(
    st.sampled_from([0, 1, 2, 3, 5, 20, 24, 32, 40, 48, 56, 64, 0xFFFFFFFF]), st.integers(0, 0xFFFFFFFF)
)
short_words = st.sampled_from([0x10001, 0x10002, 0x10003, 0x10005])
hostile = st.lists(st.one_of(words, short_words), max_size=64).map(
    lambda numbers: struct.pack(f"={len(numbers)}I", *numbers)
)
PARSERS = [
    (parse_device_info, vfio_device_info),
    (parse_region_info, vfio_region_info),
    (parse_irq_info, vfio_irq_info),
    (parse_type1_info, vfio_iommu_type1_info),
]


def assert_snapshot_or_named_error(parse: Callable[[], object]) -> None:
    try:
        found: object = parse()
    except KernelError as error:
        found = error
    assert is_dataclass(found) or getattr(found, "errno", None) == errno.EBADMSG


@pytest.mark.parametrize(("parse", "question"), PARSERS)
@examples(100)
@given(writes=st.lists(hostile, min_size=1, max_size=4))
def test_any_reply_is_parsed_or_a_named_error(
    parse: Callable[[InfoReply], object], question: Callable[[], vfio_irq_info], writes: list[bytes]
) -> None:
    """Arbitrary bytes in each reply give a snapshot or a named error."""
    remaining = iter(writes)

    def kernel(data: bytearray) -> None:
        written = next(remaining, writes[-1])[: len(data)]
        data[: len(written)] = written

    assert_snapshot_or_named_error(
        lambda: parse(query_info(kernel, question(), "VFIO_DEVICE_GET_INFO", "0000:00:10.0"))
    )


@pytest.mark.parametrize("parse", [parse for parse, _ in PARSERS])
@examples(100)
@given(body=hostile, flags=words, cap_offset=words)
def test_any_capability_chain_is_parsed_or_a_named_error(
    parse: Callable[[InfoReply], object], body: bytes, flags: int, cap_offset: int
) -> None:
    """The same with plausible chains: flags, counts and the first offset are valid."""
    head = struct.pack("=IIIII", 0, flags, 9, cap_offset, cap_offset)
    assert_snapshot_or_named_error(lambda: parse(answer(head + body)))


# The shim itself


def stub_functions() -> dict[str, int]:
    """Return the functions in _shim.pyi, with the number of their arguments."""
    folder = Path(vfiotool.vfio.__file__).parent.parent
    tree = ast.parse((folder / "_shim.pyi").read_text())
    (kind,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "_Lib")
    return {node.name: len(node.args.args) - 1 for node in kind.body if isinstance(node, ast.FunctionDef)}


def test_the_stub_describes_the_shim() -> None:
    ffi: Any = _shim.ffi
    constants = {name for name in dir(REAL) if isinstance(getattr(REAL, name), int)}
    assert set(stub_functions()) == set(dir(REAL)) - constants
    for name, count in stub_functions().items():
        kind = ffi.typeof(ffi.addressof(REAL, name))
        assert len(kind.args) == count, name


ASK_A_FD = re.compile(r"vt_(container_.*|group_(?!device_fd).*|dma_(map|unmap|unmap_all))")


@pytest.mark.parametrize("name", [name for name in stub_functions() if ASK_A_FD.fullmatch(name)])
def test_every_call_returns_minus_errno(name: str) -> None:
    arguments = [0] * (stub_functions()[name] - 1)
    function = getattr(REAL, name)
    assert function(-1, *arguments) == -errno.EBADF
    with Handle(null(), os.devnull) as handle:
        assert function(handle.fileno(), *arguments) == -errno.ENOTTY


def test_open_returns_minus_errno_or_a_fd_that_no_child_inherits(tmp_path: Path) -> None:
    assert REAL.vt_open(os.fsencode(tmp_path / "absent")) == -errno.ENOENT
    assert REAL.vt_group_device_fd(-1, b"0000:00:10.0") == -errno.EBADF
    with Handle(REAL.vt_open(os.devnull.encode()), os.devnull) as handle:
        assert not os.get_inheritable(handle.fileno())
        os.write(handle.fileno(), b"it is open for both")
        assert os.read(handle.fileno(), 1) == b""


def test_every_error_of_a_handle_is_a_vfiotool_error() -> None:
    for kind in (ClosedError, KernelError, DmaMapError, GroupNotViableError, UnsupportedError):
        assert issubclass(kind, VfioToolError)
