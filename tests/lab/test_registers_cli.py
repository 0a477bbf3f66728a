"""peek, poke, config and shell on real kernels: edu and pci-testdev by their documentation, lspci, setpci."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cli_result import Result
from tests.support.device_holder import held
from tests.support.guest import (
    E1000E,
    EDU,
    NVME,
    PROGRAM,
    SUBSYSTEM_NVME,
    TESTDEV,
    await_,
    done,
    driver,
    kernel_complaints,
    listing,
    output,
    path,
    vfiotool,
    vfiotool_as_nobody,
    write,
)
from tests.support.lspci_headers import COMMAND, STATUS
from tests.support.terminal import Terminal
from vfiotool.vfio import offered_modes

pytestmark = pytest.mark.needs_guest

IDENT = 0x010000ED
NEGATED, FACTORIAL, COMPUTING = "4", "8", "0x20"  # edu's registers
CONTROLLER_CONFIGURATION, ENTRY_SIZES = "0x14", "0x00460000"  # NVMe: written and kept while it is not enabled
MSIX_TABLE = "0x2000"

_FLAGS = re.compile(r"(\S+)([+-])(?= |$)")
_REGISTERS = {
    "VENDOR_ID": "vendor_id",
    "DEVICE_ID": "device_id",
    "COMMAND": "command",
    "STATUS": "status",
    "REVISION": "revision",
    "LATENCY_TIMER": "latency_timer",
    "INTERRUPT_LINE": "interrupt_line",
    "INTERRUPT_PIN": "interrupt_pin",
}
_WINDOWS = {
    "io": "I/O behind bridge",
    "memory": "Memory behind bridge",
    "prefetchable_memory": "Prefetchable memory behind bridge",
}


@pytest.fixture(scope="module", autouse=True)
def quiet_kernel() -> Iterator[None]:
    """Nothing that happens here makes the kernel complain."""
    before = kernel_complaints()
    yield
    assert kernel_complaints() == before


@pytest.fixture(scope="module")
def bound() -> Iterator[None]:
    """edu, pci-testdev and an NVMe on vfio-pci, for all tests that ask for it: binding takes time."""
    done("bind", EDU, TESTDEV, NVME)
    yield
    done("restore", "--all")


def register(*args: str) -> Any:
    """Return what peek reads."""
    return done("peek", *args)["value"]


# peek and poke


@pytest.mark.usefixtures("bound")
def test_edu_tells_what_it_is_in_each_mode() -> None:
    modes = [mode.value for mode in offered_modes(EDU)]
    assert modes
    for mode in ("auto", *modes):
        assert register(EDU, "bar0", "0", "--iommu", mode) == IDENT
    assert vfiotool("peek", EDU, "bar0", "0") == Result(0, "0x00000000: 0x010000ed\n", "")


@pytest.mark.usefixtures("bound")
def test_edu_answers_what_is_written() -> None:
    """It cannot be reset on its bus, so that it keeps a value from one opening to the next."""
    assert vfiotool("poke", EDU, "bar0", NEGATED, "0x12345678") == Result(0, "", "")
    assert register(EDU, "bar0", NEGATED) == 0xEDCBA987
    assert register(EDU, "bar0", "0", "--count", "2") == [IDENT, 0xEDCBA987]
    verified = vfiotool("poke", EDU, "bar0", NEGATED, "0", "--verify")
    assert (verified.status, verified.stdout) == (1, "0x00000004: 0xffffffff\n")
    done("poke", EDU, "bar0", FACTORIAL, "10")
    await_("the factorial is there", lambda: register(EDU, "bar0", COMPUTING) & 1 == 0)
    assert register(EDU, "bar0", FACTORIAL) == 3628800


@pytest.mark.usefixtures("bound")
def test_io_ports_are_read_by_each_width() -> None:
    """pci-testdev has there the name of the test that was chosen by a byte (QEMU docs/specs/pci-testdev)."""
    done("poke", TESTDEV, "bar1", "0", "0", "--width", "8")
    name = b"portio-no-eventfd\0"
    assert bytes(register(TESTDEV, "bar1", "0x10", "--width", "8", "--count", str(len(name)))) == name
    for width in (16, 32, 64):
        value = register(TESTDEV, "bar1", "0x10", "--width", str(width))
        assert value == int.from_bytes(name[: width // 8], "little")


@pytest.mark.usefixtures("bound")
def test_configuration_space_as_its_owner_sees_it() -> None:
    (dword,) = output("setpci", "-s", NVME, "0.L").split()
    assert register(NVME, "config", "0") == int(dword, 16)
    assert vfiotool("poke", NVME, "config", "0x3c", "0x2a", "--width", "8", "--verify").status == 0


@pytest.mark.usefixtures("bound")
def test_each_opening_of_a_device_that_can_be_reset_is_a_new_start() -> None:
    written = done("poke", NVME, "bar0", CONTROLLER_CONFIGURATION, ENTRY_SIZES, "--verify")
    assert written["read"] == int(ENTRY_SIZES, 16)
    assert register(NVME, "bar0", CONTROLLER_CONFIGURATION) == 0


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize(
    ("args", "status", "error"),
    [
        (f"peek {E1000E} bar0 0", 1, f"{E1000E} is on e1000e, and only a device on a VFIO driver"),
        (f"peek {EDU} bar1 0", 4, f"{EDU} has no bar1"),
        (f"peek {EDU} vga 0", 4, f"{EDU} has no vga"),
        (f"peek {EDU} 4294967295 0", 4, f"{EDU} has no region 4294967295"),
        (f"peek {EDU} bar0 0x100000", 2, f"bar0 of {EDU} has 0x100000 bytes, and the access ends at"),
        (f"peek {EDU} bar0 {1 << 70}", 2, f"bar0 of {EDU} has 0x100000 bytes"),
        (f"peek {EDU} config 0x100", 2, f"config of {EDU} has 0x100 bytes"),
        (f"peek {EDU} bar0 1", 2, "offset 0x1 is not a multiple of 32 bits"),
        (f"peek {EDU} bar0 -- -4", 2, "invalid value for 'OFFSET': -4 is negative"),
        (f"peek {EDU} bar0 0 --width 128", 2, "invalid value for '--width'"),
        (f"peek {EDU} bar0 0 --iommu best", 2, "there is no IOMMU mode 'best'"),
        (f"peek {EDU} bar0 0 --iommu noiommu", 4, ""),  # by what the kernel lacks, or that there is an IOMMU
        (f"poke {EDU} bar0 4 0x100 --width 8", 2, "0x100 has more than 8 bits"),
        (f"poke {EDU} bar0 4 -- -1", 2, "invalid value for 'VALUE': -1 is negative"),
        (
            f"poke {NVME} bar0 {MSIX_TABLE} 0",
            1,
            f"a 32-bit write at 0x0 of bar0 of {NVME} from 0x2000 on is f",
        ),
    ],
)
def test_errors(args: str, status: int, error: str) -> None:
    result = vfiotool(*args.split())
    assert (result.status, result.stdout) == (status, "")
    first, hint = result.stderr.splitlines()
    assert first.startswith(f"error: {error}")
    assert hint.startswith("hint: ")


@pytest.mark.usefixtures("bound")
def test_who_holds_the_device_is_named() -> None:
    with held(EDU) as pid:
        for verb in (("peek", EDU, "bar0", "0"), ("poke", EDU, "bar0", NEGATED, "0"), ("shell", EDU)):
            with script("print('never')"):
                result = vfiotool(*verb)
            assert (result.status, result.stdout) == (5, "")
            assert f"error: {EDU} is in use: held by pid {pid} (" in result.stderr
    assert register(EDU, "bar0", "0") == IDENT


@pytest.mark.usefixtures("bound")
def test_a_user_without_rights_is_told_so() -> None:
    result = vfiotool_as_nobody("peek", EDU, "bar0", "0")
    assert (result.status, result.stdout) == (1, "")
    assert "permission denied (EACCES)" in result.stderr


# config


def config(address: str, *args: str) -> Any:
    """Return what config reads."""
    return done("config", address, *args)["value"]


@pytest.fixture(scope="module")
def configs() -> dict[str, Any]:
    return {address: config(address) for address in listing()}


@pytest.fixture(scope="module")
def verbose() -> dict[str, str]:
    """Return the text of ``lspci -vvv`` for each device."""
    paragraphs = output("lspci", "-D", "-vvv").strip().split("\n\n")
    return {paragraph.split(" ", 1)[0]: paragraph for paragraph in paragraphs}


@pytest.mark.full
def test_config_agrees_with_setpci(configs: dict[str, Any]) -> None:
    for address, value in configs.items():
        names = [*_REGISTERS, "CLASS_DEVICE", "CLASS_PROG", "CACHE_LINE_SIZE", "HEADER_TYPE"]
        words = output("setpci", "-s", address, *names).split()
        said = dict(zip(names, (int(word, 16) for word in words), strict=True))
        assert {name: value[field] for name, field in _REGISTERS.items()} == {n: said[n] for n in _REGISTERS}
        assert value["class_code"] == said["CLASS_DEVICE"] << 8 | said["CLASS_PROG"]
        assert value["cache_line_size"] == said["CACHE_LINE_SIZE"] * 4
        assert value["multifunction"] << 7 | value["header_type"] == said["HEADER_TYPE"]


def test_single_registers_agree_with_setpci() -> None:
    places = [(0x00, 32), (0x06, 16), (0x0A, 16), (0x0E, 8), (0x34, 8), (0x40, 32), (0x41, 8), (0xFC, 32)]
    letters = {8: "B", 16: "W", 32: "L"}
    for address in (EDU, NVME):
        words = output("setpci", "-s", address, *(f"{at:x}.{letters[width]}" for at, width in places)).split()
        found = [config(address, hex(at), "--width", str(width)) for at, width in places]
        assert found == [int(word, 16) for word in words]
    assert vfiotool("config", EDU, "0") == Result(0, "0x00000000: 0x11e81234\n", "")


def test_bits_agree_with_lspci(configs: dict[str, Any], verbose: dict[str, str]) -> None:
    for address, value in configs.items():
        assert set(value["command_bits"]) == said_bits(verbose[address], "Control", COMMAND)
        assert set(value["status_bits"]) == said_bits(verbose[address], "Status", STATUS)


def said_bits(text: str, what: str, names: dict[str, str]) -> set[str]:
    """Return the bits that lspci shows with a plus."""
    (line,) = re.findall(rf"^\t{what}: (.*)$", text, re.MULTILINE)
    found = {names[name]: sign for name, sign in _FLAGS.findall(re.sub(r"DEVSEL=\S+ ", "", line))}
    assert found.keys() == set(names.values())
    return {name for name, sign in found.items() if sign == "+"}


def test_bridges_agree_with_lspci(configs: dict[str, Any], verbose: dict[str, str]) -> None:
    bridges = {address: value["bridge"] for address, value in configs.items() if value["header_type"] == 1}
    assert len(bridges) == 8
    assert sum(value["bridge"] is not None for value in configs.values()) == len(bridges)
    for address, bridge in bridges.items():
        text = verbose[address]
        buses = re.search(r"Bus: primary=(\w+), secondary=(\w+), subordinate=(\w+)", text)
        assert buses is not None
        named = [bridge[f"{kind}_bus"] for kind in ("primary", "secondary", "subordinate")]
        assert named == [int(bus, 16) for bus in buses.groups()]
        for name, title in _WINDOWS.items():
            said = re.search(rf"^\t{title}: ([0-9a-f]+)-([0-9a-f]+)(.*)$", text, re.MULTILINE)
            assert said is not None, title
            start, end = (int(number, 16) for number in said.groups()[:2])
            expected = None if "[disabled]" in said[3] else (start, end)
            window = bridge[name] and (bridge[name]["start"], bridge[name]["end"])
            assert window == expected, (address, title)
    assert any(bridge["memory"] for bridge in bridges.values())


def test_bars_agree_with_sysfs(configs: dict[str, Any]) -> None:
    """The kernel's flags are those of include/linux/ioport.h."""
    types = {0x100: "io", 0x200: "memory32", 0x100200: "memory64"}
    for address, value in configs.items():
        with open(path(address, "resource")) as file:
            lines = [[int(number, 16) for number in line.split()] for line in file][:6]
        bars = [
            {
                "index": index,
                "address": start,
                "type": types[flags & 0x100300],
                "prefetchable": bool(flags & 0x2000),
            }
            for index, (start, end, flags) in enumerate(lines)
            if end
        ]
        assert value["bars"] == bars, address


def test_a_vf_has_its_capabilities(verbose: dict[str, str]) -> None:
    """Its vendor and device read as ones."""
    numvfs, autoprobe = path(SUBSYSTEM_NVME, "sriov_numvfs"), path(SUBSYSTEM_NVME, "sriov_drivers_autoprobe")
    vf = "0000:01:00.1"
    write(autoprobe, "0")
    try:
        write(numvfs, "1")
        await_("the VF is there", lambda: os.path.exists(path(vf)))
        value, shown = config(vf), done("show", vf)
        said = output("lspci", "-vvv", "-s", vf)
    finally:
        write(numvfs, "0")
        write(autoprobe, "1")
    await_("the VF is gone", lambda: not os.path.exists(path(vf)))
    offsets = [int(at, 16) for at in re.findall(r"^\tCapabilities: \[([0-9a-f]+)", said, re.MULTILINE)]
    assert len(offsets) > 1
    assert [one["offset"] for one in value["capabilities"]] == offsets
    assert [one["offset"] for one in shown["capabilities"]] == offsets
    assert (value["vendor_id"], value["device_id"]) == (0xFFFF, 0xFFFF)


@pytest.mark.full
def test_config_without_rights() -> None:
    seen = vfiotool_as_nobody("config", EDU, "--json")
    assert (seen.status, seen.stderr) == (0, "")
    assert seen.document["unavailable"] == ["capabilities"]
    whole = config(EDU)
    assert seen.document["value"] == whole | {"capabilities": None}
    beyond = vfiotool_as_nobody("config", EDU, "0x40")
    assert (beyond.status, beyond.stdout) == (1, "")
    assert "hint: run as root" in beyond.stderr


# shell


@contextlib.contextmanager
def script(source: str) -> Iterator[None]:
    """Have a script at this process's stdin."""
    former, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(source.encode()))
    try:
        yield
    finally:
        sys.stdin = former


@pytest.mark.usefixtures("bound")
def test_a_script_in_each_mode() -> None:
    source = "with dev.regions.bar0.map() as bar0: print(dev.dma.iommu.mode.value, hex(bar0.read32(0)))"
    for mode in offered_modes(EDU):
        with script(source):
            result = vfiotool("shell", EDU, "--iommu", mode.value)
        assert result == Result(0, f"{mode.value} {IDENT:#x}\n", "")


@pytest.mark.usefixtures("bound")
def test_a_script_that_drives_the_device() -> None:
    """DMA and an interrupt, as a user would write it."""
    source = """
class Edu(RegisterBlock, width=32):
    irq_status = Register(0x24, access="ro")
    irq_ack = Register(0x64, access="wo")
    dma = Register(0x80, width=64, count=3)
    dma_cmd = Register(0x98, width=64, fields={"start": bit(0), "to_ram": bit(1), "irq": bit(2)})

with (
    dev.regions.bar0.map() as bar0,
    dev.dma.alloc(4096, iova_max=(1 << 28) - 1) as buf,
    dev.irqs.msi.enable(1) as (vector,),
):
    dev.bus_master = True
    regs = Edu(bar0)
    for flags, source, target in (({}, buf.iova, 0x40000), ({"to_ram": 1}, 0x40000, buf.iova + 64)):
        buf[:4] = b"ping"
        for register, value in zip(regs.dma, (source, target, 4)):
            register.write(value)
        regs.dma_cmd.write(start=1, irq=1, **flags)
        vector.wait(timeout=60)
        regs.irq_ack.write(regs.irq_status.read())
    print(bytes(buf[64:68]))
"""
    with script(source):
        assert vfiotool("shell", EDU) == Result(0, "b'ping'\n", "")


@pytest.mark.full
def test_a_script_on_a_device_that_is_lent() -> None:
    former = driver(E1000E)
    assert former == "e1000e"
    with script("import os; print(os.readlink(f'/sys/bus/pci/devices/{dev.name}/driver')); 1 / 0"):
        result = vfiotool("shell", E1000E, "--bind")
    assert (result.status, result.stdout) == (1, "../../../bus/pci/drivers/vfio-pci\n")
    assert "ZeroDivisionError" in result.stderr
    assert driver(E1000E) == former
    with script("print('never')"):
        assert vfiotool("restore", E1000E).status == 1  # nothing is recorded any more


@pytest.mark.full
def test_a_device_is_restored_when_the_process_is_told_to_end() -> None:
    """Told again and again: once is enough, and the other times do not come between."""
    with running(
        "bar0 = dev.regions.bar0.map(); print('in', flush=True); import signal; signal.pause()"
    ) as process:
        assert driver(E1000E) == "vfio-pci"
        while process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
    assert process.returncode == 128 + signal.SIGTERM
    assert driver(E1000E) == "e1000e"


@contextlib.contextmanager
def running(source: str) -> Iterator[subprocess.Popen[str]]:
    """Have a script run on a network card that is lent; it has printed a line when the block begins."""
    argv = [PROGRAM, "shell", E1000E, "--bind"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(source)
        process.stdin.close()
        assert process.stdout.readline() == "in\n"
        yield process


@pytest.mark.usefixtures("bound")
def test_a_person_at_the_prompt() -> None:
    terminal = Terminal("shell", EDU)
    terminal.await_text(f"'dev' is {EDU}, opened by ")
    terminal.await_text("bar0 (0x100000 bytes), config (0x100 bytes)")
    terminal.await_text("Ctrl-D closes the device.")
    terminal.await_text(">>> ")
    terminal.type("bar0 = dev.regions.bar0.map()\nhex(bar0.read_f\t")
    terminal.await_text("read_fifo")
    terminal.type("(0, 4)[0])\n")
    terminal.await_text("'0xed'")
    terminal.type("bar0.read32(1)\n")
    terminal.await_text("hint: an offset is a multiple of the width, 4 bytes")
    terminal.type("exit(3)\n")
    assert terminal.status() == 3
    assert driver(EDU) == "vfio-pci"


@pytest.mark.full
def test_the_kernel_asks_for_the_device_while_a_person_has_it() -> None:
    """Without the prompt's consent the unbind would block for good; at its end the device is restored."""
    terminal = Terminal("shell", E1000E, "--bind")
    terminal.await_text("Ctrl-D closes the device and restores it.")
    terminal.await_text(">>> ")
    write(path(E1000E, "driver/unbind"), E1000E)
    assert driver(E1000E) is None
    terminal.await_text(f"{E1000E}: the kernel asks to release the device")
    terminal.type("dev.regions.bar0.read32(0)\n")
    terminal.await_text("ClosedError: ")
    terminal.await_text("hint: the kernel requested it")
    terminal.end()
    assert terminal.status() == 0
    assert driver(E1000E) == "e1000e"


@pytest.mark.full
def test_a_terminal_that_is_closed() -> None:
    terminal = Terminal("shell", E1000E, "--bind")
    terminal.await_text(">>> ")
    assert driver(E1000E) == "vfio-pci"
    os.close(terminal.fd)
    _, status = os.waitpid(terminal.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert driver(E1000E) == "e1000e"


def test_documents_are_one_line_each() -> None:
    for args in (("config", EDU), ("config", EDU, "0")):
        lines = vfiotool(*args, "--json").stdout.splitlines()
        assert len(lines) == 1
        assert json.loads(lines[0])["schema"] == "vfiotool.config/1"
