"""Configuration space of a fake device: registers, capabilities, and writes that turn its memory off."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.memory_device_file import ADDRESS, MemoryDeviceFile, at, device, enabled, with_msix
from tests.support.strategies import config_spaces
from vfiotool.errors import AccessError, ClosedError, KernelError, UnsupportedError, VfioToolError
from vfiotool.pci.capabilities.standard import MsiX, PowerManagement
from vfiotool.testing.built_config import config_space
from vfiotool.vfio.regions.config_space import ConfigSpace
from vfiotool.vfio.regions.regions import Regions
from vfiotool.vfio.uapi import PciRegion

CONFIG = at(PciRegion.CONFIG)
POWER_AT = 0x50
POWER_STATE_AT = POWER_AT + 4


def with_power() -> bytes:
    """Configuration space with Power Management, followed by MSI-X."""
    return enabled(
        config_space(
            capabilities=[
                (0x01, POWER_AT, struct.pack("<HH", 0x0003, 0x0008)),
                (0x11, 0x60, struct.pack("<HII", 3, 0x2000, 0x3000)),
            ]
        )
    )


@pytest.fixture
def file() -> Iterator[MemoryDeviceFile]:
    with device(with_power()) as made:
        yield made


@pytest.fixture
def config(file: MemoryDeviceFile) -> ConfigSpace:
    return Regions(file).config


class StuckFile(MemoryDeviceFile):
    """A device whose command register has read-only bits."""

    stuck = 0

    def pwrite(self, data: bytes, offset: int) -> None:
        before = int.from_bytes(self.pread(2, CONFIG + 4), "little")
        super().pwrite(data, offset)
        now = int.from_bytes(self.pread(2, CONFIG + 4), "little")
        kept = before & self.stuck | now & ~self.stuck
        super().pwrite(kept.to_bytes(2, "little"), CONFIG + 4)


# Registers


def test_vendor_and_device_ids_are_read(config: ConfigSpace) -> None:
    assert (config.vendor_id, config.device_id) == (0x1234, 0x11E8)
    assert config.size == 256
    assert config.raw() == with_power()


def test_configuration_space_is_a_register_space(file: MemoryDeviceFile, config: ConfigSpace) -> None:
    assert config.read32(0) == 0x11E81234
    assert config.read8(POWER_AT) == 1
    config.write16(0x3C, 0x1234)
    assert file.written == [(CONFIG + 0x3C, b"\x34\x12")]
    with pytest.raises(AccessError, match=f"a 32-bit read at 0x100 of config of {ADDRESS} lies outside"):
        config.read32(0x100)
    with pytest.raises(AccessError, match="cannot map this region"):
        config.map()


def test_a_bit_of_the_command_register_changes_no_other_bit(
    file: MemoryDeviceFile, config: ConfigSpace
) -> None:
    config.command = 0x0103
    assert not config.bus_master
    config.bus_master = True
    assert (config.command, config.bus_master, config.memory) == (0x0107, True, True)
    config.bus_master = True
    config.memory = False
    assert (config.command, config.bus_master, config.memory) == (0x0105, True, False)
    config.memory = True
    config.bus_master = False
    assert config.command == 0x0103
    assert {(offset, len(data)) for offset, data in file.written} == {(CONFIG + 4, 2)}


@pytest.mark.parametrize(("stuck", "on"), [(4, True), (4, False), (2, True), (2, False)])
def test_a_command_bit_that_does_not_change_is_an_error(stuck: int, on: bool) -> None:
    config = enabled(config_space())
    command = 0 if on else 6
    file = StuckFile({}, config=config[:4] + bytes([command]) + config[5:])
    file.stuck = stuck
    with file:
        space = Regions(file).config
        name = "bus_master" if stuck == 4 else "memory"
        with pytest.raises(UnsupportedError, match=f"does not turn {'on' if on else 'off'}") as caught:
            setattr(space, name, on)
        assert ADDRESS in str(caught.value)


def test_a_closed_device_raises_closed_error(file: MemoryDeviceFile, config: ConfigSpace) -> None:
    file.close()
    uses: list[Callable[[], object]] = [
        lambda: config.vendor_id,
        lambda: config.bus_master,
        lambda: setattr(config, "bus_master", True),
        lambda: setattr(config, "memory", False),
        lambda: config.write16(4, 0),
        lambda: config.write8(0x3C, 0),
        config.capabilities,
        config.settle,
    ]
    for use in uses:
        with pytest.raises(ClosedError):
            use()


# Capabilities


def test_capabilities_are_decoded(config: ConfigSpace) -> None:
    assert [(one.id, one.offset, one.name) for one in config.capabilities()] == [
        (0x01, POWER_AT, "Power Management"),
        (0x11, 0x60, "MSI-X"),
    ]
    found = config.find(0x11)
    assert found is not None
    assert isinstance(found.content, MsiX)
    assert (found.content.count, found.content.table_offset) == (4, 0x2000)
    assert config.find(0x05) is None
    assert config.find(0x01, extended=True) is None


def test_capabilities_have_their_current_contents(config: ConfigSpace) -> None:
    config.write8(POWER_STATE_AT, 3)
    found = config.find(0x01)
    assert found is not None
    assert isinstance(found.content, PowerManagement)
    assert found.content.state == "D3hot"


def test_extended_capabilities_have_separate_ids() -> None:
    with device(enabled(config_space(extended=[(0x01, 0x100), (0x10, 0x200)]))) as file:
        config = Regions(file).config
        found = config.find(0x10, extended=True)
        assert found is not None
        assert found.offset == 0x200
        assert config.find(0x01) is None
        assert config.read32(0x100) == 0x20010001


@settings(deadline=None)
@given(config_spaces() | st.binary(min_size=1, max_size=5000))
def test_any_configuration_space_is_decoded_without_a_crash(data: bytes) -> None:
    with device(data) as file:
        try:
            regions = Regions(file)
            found = regions.config.capabilities()
            with regions.bar0.map() as window:
                window.size  # noqa: B018 - mapped is enough
        except VfioToolError:
            return
        assert len(found) <= 48 + 1024
        assert len(regions.config.raw()) <= 4096


# Memory that is off: the kernel answers with SIGBUS then


WAYS: list[tuple[Callable[[ConfigSpace], None], Callable[[ConfigSpace], None], str]] = [
    (lambda c: setattr(c, "memory", False), lambda c: setattr(c, "memory", True), "memory is off"),
    (lambda c: c.write8(4, 0), lambda c: c.write32(4, 0x00100002), "memory is off"),
    (lambda c: c.write(bytes(8)), lambda c: c.write(b"\x02", 4), "memory is off"),
    (lambda c: c.write16(POWER_STATE_AT, 3), lambda c: c.write16(POWER_STATE_AT, 0), "in D3hot"),
    (lambda c: c.write32(POWER_STATE_AT, 0xB), lambda c: c.write8(POWER_STATE_AT, 1), "in D3hot"),
]


@pytest.mark.parametrize(("off", "on", "why"), WAYS)
def test_mapped_registers_are_blocked_before_the_memory_is_off(
    file: MemoryDeviceFile,
    monkeypatch: pytest.MonkeyPatch,
    off: Callable[[ConfigSpace], None],
    on: Callable[[ConfigSpace], None],
    why: str,
) -> None:
    regions = Regions(file)
    with regions.bar0.map() as window:
        pwrite = file.pwrite
        during: list[str] = []

        def look(data: bytes, offset: int) -> None:
            try:
                window.read32(0)
            except AccessError as error:
                during.append(str(error))
            pwrite(data, offset)

        monkeypatch.setattr(file, "pwrite", look)
        off(regions.config)
        assert why in during[0]
        assert len(during) == 1
        with pytest.raises(AccessError, match=why) as caught:
            window.write32(0, 1)
        assert caught.value.hint
        on(regions.config)
        assert len(during) == 2, "registers are blocked until the memory is on again"
        window.write32(0, 1)


def test_a_refused_write_blocks_no_mapped_registers(
    file: MemoryDeviceFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Regions(file).config
    monkeypatch.setattr(file, "set_asleep", lambda *_: pytest.fail("it was put to sleep"))
    uses: list[Callable[[], None]] = [lambda: config.write16(3, 0), lambda: config.write(bytes(256), 1)]
    for use in uses:
        with pytest.raises(AccessError):
            use()


def test_registers_stay_blocked_until_no_reason_is_left(file: MemoryDeviceFile) -> None:
    regions = Regions(file)
    config = regions.config
    with regions.bar0.map() as window:
        config.memory = False
        config.write8(POWER_STATE_AT, 3)
        config.memory = True
        with pytest.raises(AccessError, match="in D3hot"):
            window.read32(0)
        config.write8(POWER_STATE_AT, 0)
        assert window.read32(0) == 0


def test_other_writes_block_no_mapped_registers(
    file: MemoryDeviceFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions = Regions(file)
    with regions.bar0.map() as window:
        pwrite = file.pwrite

        def look(data: bytes, offset: int) -> None:
            assert window.read32(0) == 0
            pwrite(data, offset)

        monkeypatch.setattr(file, "pwrite", look)
        regions.config.bus_master = True
        regions.config.write8(5, 0)
        regions.config.write8(POWER_STATE_AT, 2)
        regions.config.write8(0x3C, 0)
    assert len(file.written) == 4


def test_after_a_failed_write_the_registers_follow_the_device(
    file: MemoryDeviceFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions = Regions(file)

    def fail(data: bytes, offset: int) -> None:
        raise KernelError(5, "write", ADDRESS)

    monkeypatch.setattr(file, "pwrite", fail)
    with regions.bar0.map() as window:
        with pytest.raises(KernelError):
            regions.config.memory = False
        assert window.read32(0) == 0


def test_a_device_can_be_opened_with_its_memory_off() -> None:
    with device(config_space()) as file:
        regions = Regions(file)
        with regions.bar0.map() as window:
            with pytest.raises(AccessError, match="memory is off"):
                window.read32(0)
            regions.config.memory = True
            assert window.read32(0) == 0


def test_settle_follows_external_changes(file: MemoryDeviceFile) -> None:
    regions = Regions(file)
    with regions.bar0.map() as window:
        regions.config.write8(POWER_STATE_AT, 3)
        file.pwrite(b"\0", CONFIG + POWER_STATE_AT)
        regions.config.settle()
        assert window.read32(0) == 0
        file.pwrite(b"\0", CONFIG + 4)
        regions.config.settle()
        with pytest.raises(AccessError):
            window.read32(0)


def test_power_management_may_be_missing_or_truncated() -> None:
    body = struct.pack("<HII", 3, 0x2000, 0x3000)
    for config in (
        with_msix(0x2000, 0x3000),
        enabled(config_space(capabilities=[(0x01, 0x40, body)]))[:0x44],
    ):
        with device(config) as file, Regions(file).bar0.map() as window:
            Regions(file).config.memory = False
            with pytest.raises(AccessError):
                window.read32(0)
