"""The verbs peek, poke, config and shell."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.cli_result import Result
from tests.unit.conftest import Run
from vfiotool import cli
from vfiotool.cli.prompt import _Completer
from vfiotool.errors import KernelError
from vfiotool.host.attributes import device_path
from vfiotool.testing import FakeHost, config_space
from vfiotool.testing.fake_edu import FakeEdu
from vfiotool.testing.fake_iommu import FakeIommu
from vfiotool.vfio.device_file import DeviceFile
from vfiotool.vfio.iommu import IommuMode

EDU, NIC, LONER = "0000:00:10.0", "0000:00:12.0", "0000:00:1f.0"
IDENT = 0x010000ED


class CountingEdu(FakeEdu):
    """An edu device that records its accesses: ``accesses`` has (verb, offset, width)."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.accesses: list[tuple[str, int, int]] = []

    def read(self, bar: int, offset: int, width: int) -> int:
        self.accesses.append(("read", offset, width))
        return super().read(bar, offset, width)

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        self.accesses.append(("write", offset, width))
        super().write(bar, offset, width, value)


@pytest.fixture(autouse=True)
def machine(host: FakeHost) -> FakeHost:
    msi = (0x05, 0x40, bytes(12))
    host.add_driver("vfio-pci")
    host.add_device(EDU, driver="vfio-pci", group=5, config=config_space(revision=0x10, capabilities=[msi]))
    host.add_device(NIC, vendor=0x8086, device=0x10D3, driver="e1000e", group=7)
    host.add_device(LONER, config=b"\xff" * 256)
    host.put(f"{device_path(EDU)}/resource", "0xfde00000 0xfdefffff 0x40200\n0x0 0x0 0x0")
    return host


@pytest.fixture(autouse=True)
def edu(monkeypatch: pytest.MonkeyPatch) -> CountingEdu:
    """The device that a verb opens, in place of a real device."""
    model = CountingEdu(EDU)
    nic = CountingEdu(NIC)

    def open_iommu(mode: str, *, address: str | None = None) -> FakeIommu:
        return FakeIommu(IommuMode.TYPE1V2 if mode == "auto" else mode, devices=[model, nic])

    monkeypatch.setattr("vfiotool.vfio.device.open_iommu", open_iommu)
    return model


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restore the signal handlers after a test."""
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    yield
    assert signal.getsignal(signal.SIGINT) is former[signal.SIGINT]
    for number, handler in former.items():
        signal.signal(number, handler)


# peek and poke


def test_a_register_is_read_by_one_access_of_its_width(vfiotool: Run, edu: CountingEdu) -> None:
    result = vfiotool("peek", EDU, "bar0", "0")
    assert result == Result(0, f"0x00000000: {IDENT:#010x}\n", "")
    assert edu.accesses == [("read", 0, 32)]


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_each_width_is_one_access(vfiotool: Run, edu: CountingEdu, width: int) -> None:
    assert vfiotool("peek", EDU, "0", "0x88", "--width", str(width)).status == 0
    assert vfiotool("poke", EDU, "0", "0x88", "1", "--width", str(width)) == Result(0, "", "")
    assert edu.accesses == [("read", 0x88, width), ("write", 0x88, width)]


def test_count_reads_consecutive_registers(vfiotool: Run) -> None:
    rows = vfiotool("peek", EDU, "bar0", "0b100", "--count", "3").stdout.splitlines()
    assert rows == ["0x00000004: 0x00000000", "0x00000008: 0x00000001", "0x0000000c: 0xffffffff"]


def test_the_document_of_peek(vfiotool: Run) -> None:
    one = {"schema": "vfiotool.peek/1", "address": EDU, "region": "bar0", "offset": 0, "width": 32}
    assert vfiotool("peek", EDU, "BAR0", "0x0", "--json").document == one | {"value": IDENT}
    assert vfiotool("peek", EDU, "0", "0", "--count", "1", "--json").document == one | {"value": [IDENT]}
    assert vfiotool("peek", EDU, "bar0", "0", "--count", "2", "--json").document["value"] == [IDENT, 0]


def test_configuration_space_is_a_region(vfiotool: Run) -> None:
    assert vfiotool("peek", EDU, "config", "0").stdout == "0x00000000: 0x11e81234\n"
    assert vfiotool("poke", EDU, "config", "0x3c", "9", "--width", "8", "--verify").status == 0


def test_the_document_of_poke(vfiotool: Run) -> None:
    written = vfiotool("poke", EDU, "bar0", "0x80", "0xffff_ffff_ffff_ffff", "--width", "64", "--json")
    document = {"schema": "vfiotool.poke/1", "address": EDU, "region": "bar0", "offset": 0x80, "width": 64}
    assert written.document == document | {"value": (1 << 64) - 1, "read": None}
    verified = vfiotool("poke", EDU, "bar0", "0x80", "5", "--width", "64", "--json", "--verify")
    assert verified.document == document | {"value": 5, "read": 5}


def test_verify_fails_if_the_register_has_another_value(vfiotool: Run) -> None:
    result = vfiotool("poke", EDU, "bar0", "4", "0xff", "--verify")
    assert (result.status, result.stdout) == (1, "0x00000004: 0xffffff00\n")
    assert result.stderr.startswith(f"error: bar0 of {EDU} has 0xffffff00 at 0x4 after a write of 0xff\nhint")
    assert vfiotool("poke", EDU, "bar0", "4", "0xff", "--verify", "--json").document["read"] == 0xFFFFFF00


@pytest.mark.parametrize(
    ("args", "status", "error"),
    [
        ("peek {EDU} bar0", 2, "missing argument 'OFFSET'"),
        ("peek {EDU} bar6 0", 2, "invalid value for 'REGION': 'bar6' is not a region: bar0, bar1, "),
        ("peek {EDU} 4294967296 0", 2, "invalid value for 'REGION': '4294967296' is not a region"),
        ("peek {EDU} -- -1 0", 2, "invalid value for 'REGION': '-1' is not a region"),
        ("peek {EDU} bar1 0", 4, "{EDU} has no bar1"),
        ("peek {EDU} 99 0", 4, "{EDU} has no region 99"),
        ("peek {EDU} bar0 x", 2, "invalid value for 'OFFSET': 'x' is not a number"),
        ("peek {EDU} bar0 010", 2, "invalid value for 'OFFSET': '010' is not a number"),
        ("peek {EDU} bar0 -- -4", 2, "invalid value for 'OFFSET': -4 is negative"),
        ("peek {EDU} bar0 2", 2, "offset 0x2 is not a multiple of 32 bits"),
        ("peek {EDU} bar0 4 --width 64", 2, "offset 0x4 is not a multiple of 64 bits"),
        ("peek {EDU} bar0 0x100000", 2, "bar0 of {EDU} has 0x100000 bytes, and the access ends at 0x100004"),
        ("peek {EDU} bar0 0xffffc --count 2", 2, "bar0 of {EDU} has 0x100000 bytes"),
        ("peek {EDU} bar0 0xfffffffffffffffffffffff0", 2, "bar0 of {EDU} has 0x100000 bytes"),
        ("peek {EDU} bar0 0 --count 99999999999999999999999", 2, "bar0 of {EDU} has 0x100000 bytes"),
        ("peek {EDU} config 0x100", 2, "config of {EDU} has 0x100 bytes"),
        ("peek {EDU} bar0 0 --width 128", 2, "invalid value for '--width'"),
        ("peek {EDU} bar0 0 --count 0", 2, "invalid value for '--count'"),
        ("peek {NIC} bar0 0", 1, "{NIC} is on e1000e, and only a device on a VFIO driver can be opened"),
        ("peek {LONER} bar0 0", 1, "{LONER} is on no driver, and only"),
        ("peek 0000:00:1d.0 bar0 0", 1, "no PCI device matches '0000:00:1d.0'"),
        ("peek 0000:* bar0 0", 2, "'0000:*' matches 3 devices"),
        ("poke {EDU} bar0 4", 2, "missing argument 'VALUE'"),
        ("poke {EDU} bar0 4 1.5", 2, "invalid value for 'VALUE': '1.5' is not a number"),
        ("poke {EDU} bar0 4 -- -1", 2, "invalid value for 'VALUE': -1 is negative"),
        ("poke {EDU} bar0 4 0x100 --width 8", 2, "0x100 has more than 8 bits"),
        ("poke {EDU} bar0 8 0x10000000000000000 --width 64", 2, "0x10000000000000000 has more than 64"),
        ("poke {EDU} bar0 6 1", 2, "offset 0x6 is not a multiple of 32 bits"),
        ("poke {EDU} bar0 0x100000 1", 2, "bar0 of {EDU} has 0x100000 bytes"),
        (
            "config {EDU} 0x100",
            2,
            "configuration space of {EDU} has 0x100 bytes, and the access ends at 0x104",
        ),
        ("config {EDU} 1 --width 16", 2, "offset 0x1 is not a multiple of 16 bits"),
        ("config {EDU} --width 16", 2, "--width needs OFFSET"),
        ("shell {NIC}", 1, "{NIC} is on e1000e, and only"),
        ("shell {EDU} --allow-vga", 2, "--allow-… needs --bind"),
        ("shell --bind {LONER}", 4, "{LONER} is in no IOMMU group"),
        ("shell --bind 0000:*", 2, "'0000:*' matches 3 devices"),
    ],
)
def test_errors(
    vfiotool: Run,
    stdin: Callable[[str], None],
    edu: CountingEdu,
    host: FakeHost,
    args: str,
    status: int,
    error: str,
) -> None:
    stdin("print('never')")
    names = {"EDU": EDU, "NIC": NIC, "LONER": LONER}
    result = vfiotool(*args.format(**names).split())
    assert (result.status, result.stdout) == (status, ""), result.stderr
    first, hint = result.stderr.splitlines()
    assert first.startswith(f"error: {error.format(**names)}")
    assert hint.startswith("hint: ")
    assert (edu.accesses, host.writes) == ([], [])


def test_an_unknown_iommu_mode_is_refused(vfiotool: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from vfiotool.vfio.iommu import selection

    monkeypatch.setattr("vfiotool.vfio.device.open_iommu", selection.open_iommu)
    result = vfiotool("peek", EDU, "bar0", "0", "--iommu", "type3")
    assert (result.status, result.stdout) == (2, "")
    assert "use one of auto, type1, " in result.stderr


def test_the_holder_of_a_device_is_named(
    vfiotool: Run, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_busy(*_: object, **__: object) -> None:
        raise KernelError(errno.EBUSY, "open", "/dev/vfio/5")

    monkeypatch.setattr("vfiotool.vfio.device.open_device", is_busy)
    unseen = vfiotool("peek", EDU, "bar0", "0")
    assert (unseen.status, "failed: already in use (EBUSY)" in unseen.stderr) == (1, True)
    host.add_process(77, "qemu", {3: "/dev/vfio/5"})
    for args in (("peek", EDU, "bar0", "0"), ("poke", EDU, "bar0", "4", "1")):
        held = vfiotool(*args)
        assert (held.status, held.stdout) == (5, "")
        assert held.stderr.startswith(
            f"error: {EDU} is in use: held by pid 77 (qemu), fd 3 on /dev/vfio/5\nhint"
        )


def test_a_pending_unbind_is_named(vfiotool: Run, host: FakeHost) -> None:
    host.block(EDU, pid=77, comm="qemu")
    assert vfiotool("unbind", EDU, "--allow-held", "--timeout", "1").status == 5
    result = vfiotool("peek", EDU, "bar0", "0")
    assert result.status == 5
    assert f"error: a change of {EDU} is pending: held by pid 77 (qemu), fd 3 on /dev/vfio/5" in result.stderr


def test_verbs_that_open_devices_refuse_a_sysroot(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["peek", EDU, "bar0", "0"], ["poke", EDU, "bar0", "0", "0"], ["shell", EDU]):
        assert cli.run(["--sysroot", host.root, *args]) == 2
        assert f"'vfiotool {args[0]}' works only on the running machine" in capsys.readouterr().err


# config


def test_the_document_of_config(vfiotool: Run) -> None:
    document = vfiotool("config", EDU, "--json").document
    assert set(document) == {"schema", "address", "answers", "value", "unavailable"}
    assert document["answers"] is True
    assert (document["schema"], document["address"]) == ("vfiotool.config/1", EDU)
    assert document["unavailable"] == []
    value = document["value"]
    assert (value["vendor_id"], value["revision"], value["status"]) == (0x1234, 0x10, 0x10)
    (msi,) = value["capabilities"]
    assert {name: msi[name] for name in ("id", "offset", "extended", "name")} == {
        "id": 5,
        "offset": 0x40,
        "extended": False,
        "name": "MSI",
    }
    assert (msi["content"]["enabled"], msi["content"]["max_count"]) == (False, 1)


def test_config_as_text(vfiotool: Run) -> None:
    result = vfiotool("config", EDU)
    assert (result.status, result.stderr) == (0, "")
    assert f"{EDU} Vendor 1234 Device 11e8" in result.stdout
    assert "cap 0x040  MSI: count 1; " in result.stdout


def test_one_register_of_configuration_space(vfiotool: Run) -> None:
    assert vfiotool("config", EDU, "0").stdout == "0x00000000: 0x11e81234\n"
    assert vfiotool("config", EDU, "2", "--width", "16").stdout == "0x00000002: 0x11e8\n"
    assert vfiotool("config", EDU, "8", "--width", "8", "--json").document == {
        "schema": "vfiotool.config/1",
        "address": EDU,
        "answers": True,
        "offset": 8,
        "width": 8,
        "value": 0x10,
    }


def test_config_is_read_for_any_driver_and_from_a_capture(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["--sysroot", host.root, "config", NIC, "0"]) == 0
    assert capsys.readouterr().out == "0x00000000: 0x10d38086\n"


def test_configuration_space_beyond_the_users_rights_is_unavailable(vfiotool: Run, host: FakeHost) -> None:
    host.put(f"{device_path(NIC)}/config", config_space(vendor=0x8086)[:64])
    document = vfiotool("config", NIC, "--json").document
    assert (document["value"]["vendor_id"], document["value"]["capabilities"]) == (0x8086, None)
    assert document["unavailable"] == ["capabilities"]
    assert document["answers"] is True
    for verb in ("config", "show"):
        assert "the kernel shows them to root alone" in vfiotool(verb, NIC).stdout
    shown = vfiotool("show", NIC, "--json").document
    assert shown["capabilities"] is None
    assert "capabilities" in shown["unavailable"]
    assert vfiotool("config", NIC, "0x3c").status == 0
    refused = vfiotool("config", NIC, "0x40")
    assert (refused.status, refused.stderr.splitlines()[1]) == (1, "hint: run as root")
    assert vfiotool("config", NIC, "0x1000").status == 2


@pytest.mark.parametrize("size", [256, 4096])
def test_zeros_that_a_tar_added_are_no_registers(vfiotool: Run, host: FakeHost, size: int) -> None:
    """A tar that a user made: the kernel gave 64 bytes, and sysfs says that the file has more."""
    whole = config_space(vendor=0x8086, capabilities=[(0x01, 0x40, bytes(6))])
    host.put(f"{device_path(NIC)}/config", whole[:64].ljust(size, b"\0"))
    assert vfiotool("config", NIC, "--json").document["unavailable"] == ["capabilities"]
    assert vfiotool("show", NIC, "--json").document["capabilities"] is None
    assert vfiotool("config", NIC, "0x40").stderr.endswith("hint: run as root\n")
    without = config_space(vendor=0x8086)
    host.put(f"{device_path(NIC)}/config", without)
    assert vfiotool("config", NIC, "--json").document["value"]["capabilities"] == []


_VPD = bytes.fromhex("820600") + b"Board\x1b" + bytes.fromhex("900d00") + b"PN\x03X-1SN\x0412\xff4" + b"\x78"


def test_config_has_the_vital_product_data(vfiotool: Run, host: FakeHost) -> None:
    """The bytes of PCI Local Bus 3.0 appendix I: a product name, a part number, a serial number, the end."""
    host.put(f"{device_path(NIC)}/vpd", _VPD)
    document = vfiotool("config", NIC, "--json").document
    vpd = document["value"]["vpd"]
    assert vpd["product_name"] == "Board\x1b"
    assert [(field["keyword"], field["value"]) for field in vpd["read_only"]] == [
        ("PN", "X-1"),
        ("SN", "12\\xff4"),
    ]
    assert (vpd["complete"], document["unavailable"]) == (True, [])
    text = vfiotool("config", NIC).stdout
    assert "PN part number: X-1" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("capabilities", "content", "is_unknown"),
    [
        ([], None, False),
        ([(0x03, 0x40, bytes(6))], None, True),
        ([], b"", True),
        ([(0x03, 0x40, bytes(6))], b"", True),
    ],
)
def test_vital_product_data_that_cannot_be_read_are_unavailable(
    vfiotool: Run,
    host: FakeHost,
    capabilities: list[tuple[int, int, bytes]],
    content: bytes | None,
    is_unknown: bool,
) -> None:
    """The kernel shows the file to root alone, and a capture does not have it."""
    host.put(f"{device_path(NIC)}/config", config_space(vendor=0x8086, capabilities=capabilities))
    if content is not None:
        host.put(f"{device_path(NIC)}/vpd", content)
    document = vfiotool("config", NIC, "--json").document
    assert document["value"]["vpd"] is None
    assert document["unavailable"] == (["vpd"] if is_unknown else [])


@pytest.mark.parametrize("is_there", [False, True])
def test_configuration_space_of_a_silent_device_is_unavailable(
    vfiotool: Run, host: FakeHost, is_there: bool
) -> None:
    """The file cannot be read, or all bits of it are ones."""
    if not is_there:
        host.remove(f"{device_path(LONER)}/config")
    document = vfiotool("config", LONER, "--json").document
    answers = {False: None, True: False}[is_there]
    assert (document["value"], document["answers"]) == (None, answers)
    assert document["unavailable"] == (["value"] if is_there else ["value", "answers"])
    shown = vfiotool("show", LONER, "--json").document
    assert (shown["capabilities"], shown["device"]["answers"]) == (None, answers)
    assert "capabilities" in shown["unavailable"]
    (listed,) = vfiotool("list", LONER, "--json").document["devices"]
    assert listed == shown["device"]
    for verb in ("config", "show", "list"):
        assert (f"nothing answers at {LONER}" in vfiotool(verb, LONER).stdout) is is_there
    one = vfiotool("config", LONER, "0")
    expected = (0, "0x00000000: 0xffffffff\n") if is_there else (1, "")
    assert (one.status, one.stdout) == expected


# shell


class Stdin:
    """A stdin with a script, or a terminal."""

    def __init__(self, text: str, *, is_terminal: bool = False) -> None:
        self.buffer = io.BytesIO(text.encode())
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda script: monkeypatch.setattr(sys, "stdin", Stdin(script))


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a user type lines, and Ctrl-D at the end."""

    def type_lines(*lines: str) -> None:
        left = [*lines]

        def answer(_prompt: str = "") -> str:
            if not left:
                raise EOFError
            return left.pop(0)

        monkeypatch.setattr(sys, "stdin", Stdin("", is_terminal=True))
        monkeypatch.setattr("builtins.input", answer)

    return type_lines


def test_a_script_has_the_device_and_the_public_names(vfiotool: Run, stdin: Callable[[str], None]) -> None:
    stdin(
        "class Edu(RegisterBlock, width=32):\n"
        "    ident = Register(0, access='ro', fields={'minor': bits(23, 16), 'major': bits(31, 24)})\n"
        "bar0 = dev.regions.bar0.map()\n"
        "print(__name__, dev.name, Edu(bar0).ident.read_fields(), vfiotool.bound is bound)\n"
    )
    result = vfiotool("shell", EDU, "--iommu", "iommufd")
    assert result == Result(0, f"__main__ {EDU} {{'minor': 0, 'major': 1}} True\n", "")


def test_the_device_is_opened_by_the_named_iommu_mode(vfiotool: Run, stdin: Callable[[str], None]) -> None:
    stdin("print(dev.dma.iommu.mode.value)")
    assert vfiotool("shell", EDU, "--iommu", "compat-type1").stdout == "compat-type1\n"


@pytest.mark.parametrize("verb", ["peek", "poke", "shell"])
def test_the_vf_token_reaches_the_device(
    vfiotool: Run, monkeypatch: pytest.MonkeyPatch, stdin: Callable[[str], None], verb: str
) -> None:
    token, seen = "b7a4c2d0-1e2f-4a5b-8c9d-0123456789ab", []
    take = FakeIommu.open_device

    def open_device(space: FakeIommu, address: str, vf_token: uuid.UUID | None = None) -> DeviceFile:
        seen.append((space.mode, str(vf_token)))
        return take(space, address)

    monkeypatch.setattr(FakeIommu, "open_device", open_device)
    monkeypatch.setattr("vfiotool.vfio.device.best_with_token", lambda address: IommuMode.COMPAT_TYPE1)
    stdin("")
    words = {"peek": ["bar0", "0"], "poke": ["bar0", "4", "1"], "shell": []}[verb]
    assert vfiotool(verb, EDU, *words, "--vf-token", token.upper()).status == 0
    assert vfiotool(verb, EDU, *words, "--vf-token", token, "--iommu", "iommufd").status == 0
    assert seen == [(IommuMode.COMPAT_TYPE1, token), (IommuMode.IOMMUFD, token)]


def test_a_vf_token_that_is_no_uuid_is_refused(vfiotool: Run) -> None:
    result = vfiotool("peek", EDU, "bar0", "0", "--vf-token", "secret")
    assert (result.status, result.stdout) == (2, "")
    assert "'secret' is not a valid UUID" in result.stderr


def test_a_script_that_fails_shows_its_own_traceback(vfiotool: Run, stdin: Callable[[str], None]) -> None:
    stdin("def f():\n    1 / 0\nprint('before')\nf()\n")
    result = vfiotool("shell", EDU)
    assert (result.status, result.stdout) == (1, "before\n")
    lines = result.stderr.splitlines()
    assert lines[:2] == ["Traceback (most recent call last):", '  File "<stdin>", line 4, in <module>']
    assert "    1 / 0" in lines
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_the_hint_of_an_error_follows_its_traceback(vfiotool: Run, stdin: Callable[[str], None]) -> None:
    stdin("dev.regions.bar0.read32(2)")
    result = vfiotool("shell", EDU)
    assert result.status == 1
    assert result.stderr.splitlines()[-1] == "hint: an offset is a multiple of the width, 4 bytes"


def restored(host: FakeHost) -> bool:
    """Return True if the network card was bound to vfio-pci and is restored."""
    bound = [value for path, value in host.writes if path.endswith("/vfio-pci/bind")]
    return (bound, host.driver(NIC)) == ([NIC], "e1000e")


def test_a_device_is_bound_while_the_script_runs(
    vfiotool: Run, host: FakeHost, stdin: Callable[[str], None]
) -> None:
    stdin("bar0 = dev.regions.bar0.map(); print(dev.name, hex(bar0.read32(0)))")
    result = vfiotool("shell", "--bind", NIC)
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout == f"{NIC} {IDENT:#x}\n"
    assert restored(host)


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("1 / 0", 1),
        ("raise KeyboardInterrupt", 130),
        ("dev.close()", 0),
        ("bar0 = dev.regions.bar0.map(); memory = dev.dma.alloc(4096)", 0),
        ("dev.file.revoke('the kernel asked for it')", 0),
    ],
)
def test_a_device_is_restored_after_every_end_of_the_script(
    vfiotool: Run, host: FakeHost, stdin: Callable[[str], None], script: str, status: int
) -> None:
    stdin(script)
    assert vfiotool("shell", "--bind", NIC).status == status
    assert restored(host)


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit(7)", 7),
        ("raise SystemExit('no')", "no"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 128 + signal.SIGTERM),
        ("import os, signal; os.kill(os.getpid(), signal.SIGHUP)", 128 + signal.SIGHUP),
        (
            "import os, signal\n"
            "try: os.kill(os.getpid(), signal.SIGTERM)\n"
            "finally: os.kill(os.getpid(), signal.SIGHUP)\n"
            "print('not reached')\n",
            128 + signal.SIGTERM,
        ),
    ],
)
def test_a_device_is_restored_after_a_signal(
    vfiotool: Run, host: FakeHost, stdin: Callable[[str], None], script: str, status: int | str
) -> None:
    stdin(f"import sys\nexit = sys.exit\n{script}")
    with pytest.raises(SystemExit) as ended:
        vfiotool("shell", "--bind", NIC)
    assert ended.value.code == status
    assert restored(host)


def test_signals_do_not_interrupt_a_restore(
    vfiotool: Run, host: FakeHost, stdin: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vfiotool.binding.operations import Binding

    restore = Binding.restore

    def restore_disturbed(self: Binding, wanted: list[str]) -> Any:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            os.kill(os.getpid(), number)
        return restore(self, wanted)

    monkeypatch.setattr(Binding, "restore", restore_disturbed)
    stdin("print('done')")
    assert vfiotool("shell", "--bind", NIC).stdout == "done\n"
    assert restored(host)


def test_a_device_that_cannot_be_opened_is_restored(
    vfiotool: Run, host: FakeHost, stdin: Callable[[str], None]
) -> None:
    stdin("print('never')")
    result = vfiotool("shell", "--bind", NIC, "--iommu", "noiommu")
    assert (result.status, result.stdout) == (4, "")
    assert restored(host)


def test_a_script_with_a_syntax_error_changes_nothing(
    vfiotool: Run, host: FakeHost, stdin: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for script in ("print(", "print('a')\0"):
        stdin(script)
        with pytest.raises(SystemExit) as ended:
            vfiotool("shell", "--bind", NIC)
        assert ended.value.code == 1
        assert "Error: " in capsys.readouterr().err
    assert host.writes == []


def test_a_refused_bind_names_the_option_that_lifts_its_rule(
    vfiotool: Run, host: FakeHost, stdin: Callable[[str], None]
) -> None:
    host.put(f"{host.devices[NIC].folder}/boot_vga", "1")
    stdin("print('in')")
    refused = vfiotool("shell", "--bind", NIC)
    assert (refused.status, refused.stdout, host.writes) == (3, "", [])
    assert "--allow-vga" in refused.stderr
    stdin("print('in')")
    assert vfiotool("shell", "--bind", NIC, "--allow-vga").stdout == "in\n"
    assert restored(host)


def test_a_device_that_is_already_on_a_vfio_driver_stays_there(
    vfiotool: Run, host: FakeHost, stdin: Callable[[str], None]
) -> None:
    stdin("print('in')")
    assert vfiotool("shell", "--bind", EDU).stdout == "in\n"
    assert (host.writes, host.driver(EDU)) == ([], "vfio-pci")


def test_a_device_that_another_process_has_restored_stays(
    vfiotool: Run, host: FakeHost, stdin: Callable[[str], None], state_dir: str
) -> None:
    stdin(f"dev.close(); Binding(state_dir={state_dir!r}).restore([dev.name])")
    assert vfiotool("shell", "--bind", NIC) == Result(0, "", "")
    assert restored(host)


def test_the_prompt(vfiotool: Run, typed: Callable[..., None], host: FakeHost) -> None:
    typed("bar0 = dev.regions.bar0.map()", "hex(bar0.read32(0))", "bar0.read32(1)", "print('on')")
    result = vfiotool("shell", "--bind", NIC)
    assert (result.status, result.stdout) == (0, f"'{IDENT:#x}'\non\n")
    banner, *_ = result.stderr.splitlines()
    assert banner == f"'dev' is {NIC}, opened by type1v2."
    assert "bar0 (0x100000 bytes), config (0x100 bytes)" in result.stderr
    assert "intx (1), msi (1)" in result.stderr
    assert "Ctrl-D closes the device and restores it." in result.stderr
    assert "AccessError: a 32-bit read at 0x1 of bar0" in result.stderr
    assert "hint: an offset is a multiple of the width, 4 bytes" in result.stderr
    assert restored(host)


def test_the_prompt_prints_a_request_of_the_kernel_for_the_device(
    vfiotool: Run, typed: Callable[..., None], edu: CountingEdu
) -> None:
    """The request thread prints the text before it closes the device."""
    typed(
        "import threading",
        "(request,) = [one for one in threading.enumerate() if one.name.startswith('REQ')]",
        "dev.file.device.ask_back()",
        "request.join()",
        "dev.closed",
        "dev.regions.bar0.read32(0)",
    )
    result = vfiotool("shell", EDU)
    assert (result.status, result.stdout) == (0, "True\n")
    assert (
        f"\n{EDU}: the kernel asks to release the device, because it is being unbound or removed."
        in result.stderr
    )
    assert "hint: the kernel requested it" in result.stderr


def test_completion_of_names_does_not_access_the_device() -> None:
    class Probe:
        data = 1

        def __getattr__(self, name: str) -> int:
            raise AssertionError(f"{name} was looked at")

        @property
        def status(self) -> int:
            raise AssertionError("the device was accessed")

    completer = _Completer({"dev": Probe(), "data": 2})
    assert completer.attr_matches("dev.s") == ["dev.status"]
    assert completer.attr_matches("dev.") == ["dev.data", "dev.status"]
    assert "dev.__class__" in completer.attr_matches("dev.__c")
    assert completer.attr_matches("nothing.here.") == []
    assert completer.attr_matches("f().x") == []
    assert completer.complete("dat", 0) == "data"


# completion in the shell


@pytest.fixture
def offered(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], list[str]]:
    """Return the words that bash is offered for a line."""

    def ask(words: str) -> list[str]:
        monkeypatch.setenv("_VFIOTOOL_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_LINE", f"vfiotool --sysroot {host.root} {words}")
        monkeypatch.setenv("COMP_WORDBREAKS", " ")
        capsys.readouterr()
        with contextlib.suppress(SystemExit):
            cli.run([])
        return [line.removeprefix("plain,") for line in capsys.readouterr().out.split()]

    return ask


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("peek ", [EDU]),
        ("poke 0000:00:1", [EDU]),
        ("config ", [EDU, NIC, LONER]),
        ("shell ", [EDU, NIC, LONER]),
        (f"peek {EDU} ", ["bar0", "config"]),
        ("peek 1234:11e8 ", []),  # it names two
        ("poke group:5 b", ["bar0"]),
        (f"peek {NIC} b", []),
        ("peek nothing c", []),
        (f"peek {EDU} bar0 0 --iommu compat-", ["compat-type1", "compat-type1v2"]),
        (f"shell {EDU} --iommu au", ["auto"]),
        (f"peek {EDU} bar0 0 --width 6", ["64"]),
    ],
)
def test_completion(offered: Callable[[str], list[str]], words: str, expected: list[str]) -> None:
    assert offered(words) == expected


def test_vga_is_offered_for_graphics_cards(host: FakeHost, offered: Callable[[str], list[str]]) -> None:
    host.add_device("0000:00:01.0", class_code=0x030000, driver="vfio-pci", group=1)
    host.put(f"{device_path('0000:00:01.0')}/resource", "0x0 0x0 0x0\n" * 6 + "0xc0000 0xdffff 0x212")
    assert offered("peek 00:01.0 ") == ["rom", "config", "vga"]
