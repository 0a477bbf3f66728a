"""``vfiotool config --json`` beside ``lspci -vvv`` of 3.14 or later, field by field, on the same bytes.

The tables in ``tests/support`` (``lspci_headers``, ``lspci_standard``, ``lspci_express``, ``lspci_extended``)
tell where each field of lspci is in the document, and which are left out of the comparison, with the reason.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import lspci, lspci_text
from tests.support.lspci_check import compare_device, tables
from tests.support.lspci_comparison import Comparison, Table
from tests.support.random_functions import EXPRESS, EXTENDED, STANDARD, function
from tests.support.strategies import examples
from vfiotool.pci.capabilities.decoding import decode
from vfiotool.pci.config_space import HEADER_SIZE, STANDARD_SIZE
from vfiotool.pci.header import read_header
from vfiotool.render.documents import to_json
from vfiotool.testing import config_space

MACHINES = Path(__file__).parents[1] / "data" / "machines"
DUMPS = sorted(MACHINES.glob("*/dump.txt"))
FUNCTIONS = 100


def value(config: bytes) -> Any:
    """Return the value that ``vfiotool config --json`` prints of these bytes."""
    header = read_header(config)
    if header is None:
        return None
    capabilities = decode(config) if len(config) >= STANDARD_SIZE else None
    return to_json(header) | {"capabilities": to_json(capabilities)}


def compare(configs: Sequence[bytes], folder: Path) -> Comparison:
    """Compare all functions with what a single lspci prints of them."""
    dump = folder / "dump.txt"
    dump.write_text(lspci.dump(configs))
    devices = lspci_text.parse(lspci.lspci("-D", "-vvv", "-F", dump))
    assert len(devices) == len(configs)
    comparison = Comparison()
    for number, config in enumerate(configs):
        compare_device(comparison, devices[lspci.address(number)], value(config))
    return comparison


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    contents = random.Random(14)  # noqa: S311 - the same each time is what is wanted
    return compare([function(contents) for _ in range(FUNCTIONS)], tmp_path_factory.mktemp("lspci"))


def test_random_functions_read_as_lspci_reads_them(batch: Comparison) -> None:
    assert not batch.problems, batch.report()


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
def test_more_random_functions(seed: int, tmp_path: Path) -> None:
    contents = random.Random(seed)  # noqa: S311
    comparison = compare([function(contents) for _ in range(3 * FUNCTIONS)], tmp_path)
    assert not comparison.problems, comparison.report()


# Random bits seldom have them; a run of the full tier does.
RARE = {
    ("BridgeCtl:", "<access denied to the rest>{capabilities:no value}"),
    ("Capabilities:", "<access denied>{capabilities:no value}"),
    ("AssociatedBusNumbers:", "{first_bus:none}"),
    ("IOVSta:", "VF Migration: offset: {migration_offset#}"),
    ("IOVSta:", "BIR: {migration_bar#}"),
    ("Interrupt:", "pin {interrupt_pin:pin}"),  # lspci 3.14
    ("Interrupt:", "routed to IRQ {interrupt_line}"),
    ("Interrupts:", "unknown pin{interrupt_pin:no pin}"),
    ("Latency:", "({min_gnt_ns}ns min)"),
    ("Latency:", "({max_lat_ns}ns max)"),
    ("CXLCap2:", "Cache Size: {cxl.cache_size#}"),
    ("LnkCtl:", "Disabled{link.disabled+}"),
    ("Vendor Specific Information: VirtIO:", "multiplier={virtio.notify_off_multiplier#}"),
    ("!!! Unknown header type", "{header_type#}"),
}


def test_the_tables_have_no_field_that_lspci_does_not_print(batch: Comparison) -> None:
    """A line of a table that never applies, because of a typing error, would compare nothing."""
    seen = {(label, item) for _table, label, item in batch.compared}
    every = {(label, one.text) for table in tables() for label, one in table.items() if one.is_compared}
    assert every - seen <= RARE <= every


def test_an_unknown_type_of_header(tmp_path: Path) -> None:
    config = bytearray(function(random.Random(3), header_type=0))  # noqa: S311
    config[0x0E] = 0x7E
    comparison = compare([bytes(config)], tmp_path)
    assert not comparison.problems, comparison.report()
    assert ("header -1", "!!! Unknown header type", "{header_type#}") in comparison.compared


def test_what_is_left_out_has_its_reason() -> None:
    left_out = [one for table in tables() for one in table.left_out()]
    print("\n".join(left_out))
    assert left_out
    assert all(one.rpartition(": ")[2] for one in left_out)


@pytest.mark.parametrize("size", [HEADER_SIZE, STANDARD_SIZE])
def test_what_the_kernel_shows_of_the_space(size: int, tmp_path: Path) -> None:
    """The kernel shows an unprivileged user 64 bytes, and of a conventional device there are 256."""
    contents = random.Random(size)  # noqa: S311
    comparison = compare([function(contents)[:size] for _ in range(20)], tmp_path)
    assert not comparison.problems, comparison.report()


@pytest.mark.parametrize("path", DUMPS, ids=lambda path: path.parent.name)
def test_dumps_of_real_machines(path: Path, tmp_path: Path) -> None:
    devices = lspci.parse_dump(path.read_text())
    assert devices
    comparison = compare(list(devices.values()), tmp_path)
    assert not comparison.problems, comparison.report()


def test_configuration_spaces_of_real_machines(tmp_path: Path) -> None:
    files = [Path(folder) / "config" for folder, _, names in os.walk(MACHINES) if "config" in names]
    spaces = [content for content in (file.read_bytes() for file in files) if len(content) >= HEADER_SIZE]
    assert spaces
    comparison = compare(spaces, tmp_path)
    assert not comparison.problems, comparison.report()


@examples(40)
@given(
    st.lists(
        st.tuples(
            st.randoms(use_true_random=False),
            st.sampled_from((0, 0, 1, 2)),
            st.lists(st.sampled_from([one for one in sorted(STANDARD) if one != EXPRESS]), max_size=2),
            st.lists(st.sampled_from(sorted(EXTENDED)), max_size=2, unique=True),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_few_capabilities(
    tmp_path_factory: pytest.TempPathFactory,
    functions: list[tuple[random.Random, int, list[int], list[int]]],
) -> None:
    """A difference that the large batch finds is reduced here to the least bits that show it."""
    configs = [
        function(contents, header_type=kind, standard=[EXPRESS, *standard], extended=extended)
        for contents, kind, standard, extended in functions
    ]
    comparison = compare(configs, tmp_path_factory.mktemp("lspci"))
    assert not comparison.problems, comparison.report()


BREAKS = st.tuples(st.sampled_from(("standard", "extended", "end")), st.integers(0, 99), st.integers(0, 99))


@examples(40)
@given(st.integers(0, 1 << 32), st.lists(BREAKS, min_size=1, max_size=3))
def test_broken_chains(
    tmp_path_factory: pytest.TempPathFactory, seed: int, breaks: list[tuple[str, int, int]]
) -> None:
    """A pointer goes back or leaves capabilities out, or the id 0xff ends the list."""
    config = bytearray(function(random.Random(seed)))  # noqa: S311
    found = decode(bytes(config))
    standard = [one.offset for one in found if not one.extended]
    extended = [one.offset for one in found if one.extended]
    for kind, source, target in breaks:
        if kind == "standard":
            config[standard[source % len(standard)] + 1] = standard[target % len(standard)]
        elif kind == "extended":
            at, to = extended[source % len(extended)], extended[target % len(extended)]
            config[at + 2], config[at + 3] = config[at + 2] & 0x0F | (to & 0xF) << 4, to >> 4
        else:
            config[standard[source % len(standard)]] = 0xFF
    comparison = compare([bytes(config)], tmp_path_factory.mktemp("lspci"))
    assert not comparison.problems, comparison.report()


LIVE = """\
0000:01:00.1 0108: 1b36:0010 (rev 02) (prog-if 02 [NVM Express])
\tSubsystem: 1af4:1100
\tPhysical Slot: 0-1
\tControl: I/O- Mem- BusMaster- SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx-
\tStatus: Cap- 66MHz- UDF- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- >SERR- <PERR- INTx-
\tInterrupts: MSI(X) routed to IRQ 28-30, 44
\tNUMA node: 0
\tIOMMU group: 12
\tRegion 0: {region} [disabled] [size=16K]
\tExpansion ROM at 000c0000 [virtual] [disabled] [size=128K]
\tKernel driver in use: nvme
\tKernel modules: nvme, nvme_core
"""


@pytest.mark.parametrize(
    "region",
    [
        "[virtual] Memory at fe800000 (64-bit, non-prefetchable)",
        "Memory at fe800000 (64-bit, non-prefetchable) [virtual]",
        "[virtual] I/O ports at c000",
    ],
)
def test_what_lspci_adds_of_a_live_vf(region: str) -> None:
    """The kernel has the ids and the BARs of a VF; in its registers they are ones and zeros."""
    config = bytearray(config_space(vendor=0xFFFF, device=0xFFFF, class_code=0x010802, revision=2))
    config[0x2C:0x30] = bytes.fromhex("f41a0011")
    comparison = Comparison()
    (device,) = lspci_text.parse(LIVE.format(region=region)).values()
    compare_device(comparison, device, value(bytes(config)), is_live=True)
    assert not comparison.problems, comparison.report()


# The comparison itself


SMALL = Table(
    "small", "    Title v{version}\nCap:\n    One{one+}  Two {deep.two#} units\n    - Three {} -- not ours"
)


def problems(text: str, fields: Any) -> list[str]:
    comparison = Comparison()
    comparison.compare("here", SMALL, text, fields)
    return comparison.problems


FIELDS = {"version": 3, "one": True, "deep": {"two": 0x1F}}


def test_equal_fields_are_no_problem() -> None:
    assert problems("Title v3 Cap: One+ Two 1f units, Three 4", FIELDS) == []


@pytest.mark.parametrize(
    ("text", "fields", "found"),
    [
        ("Title v4", FIELDS, "vfiotool has version = 3"),
        ("Title v3 Cap: One-", FIELDS, "vfiotool has one = True"),
        ("Title v3 Cap: Two 20 units", FIELDS, "vfiotool has deep.two = 31"),
        ("Title v3 Cap: Two 1f units", FIELDS | {"deep": None}, "vfiotool has no field deep.two"),
        ("Title v3", {}, "vfiotool has no field version"),
        ("Title v3 Cap: One+ Four+ Two 1f units", FIELDS, "'Cap: Four+': the table does not have it"),
        ("Title v3 One+", FIELDS, "'One+': the table does not have it"),
    ],
)  # fmt: skip
def test_a_difference_is_a_problem(text: str, fields: Any, found: str) -> None:
    (problem,) = problems(text, fields)
    assert problem.startswith("here: ")
    assert problem.endswith(found)
