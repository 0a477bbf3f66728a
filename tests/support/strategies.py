"""Strategies for a hostile or broken machine: text, bytes, and objects in the place of files."""

from __future__ import annotations

import enum
import struct

from hypothesis import settings
from hypothesis import strategies as st

from vfiotool.host.variant_drivers import ALIAS_FIELDS

HEX = "0123456789abcdefABCDEF"
TRICKS = (
    "..", ".", "", "/", "../../CANARY", "/CANARY", "a/../../CANARY", "\n", "\x00", "(null)", "0x", "-1",
    "9" * 5000, "0x" + "f" * 5000, "\x1b[2J", "٣", "vfio-pci\n../../CANARY", "0 0 0", "vfio-pci", "none",
    "0000:00:00.0", "[/x]", "[red]", "[link=x]",
)  # fmt: skip


def examples(count: int) -> settings:
    """Settings of a test that tries so many examples in the full tier, and a quarter in the quick one."""
    return settings(max_examples=max(1, count * settings().max_examples // 100))


class Odd(enum.Enum):
    """Objects in the place of a file."""

    MISSING = "missing"
    FOLDER = "folder"
    LOOP = "loop"
    FIFO = "fifo"


tricky_text = st.sampled_from(TRICKS) | st.text(max_size=40)
contents = st.binary(max_size=300) | tricky_text.map(lambda text: text.encode())
odd_files = contents | st.sampled_from(Odd)
link_targets = (
    st.sampled_from([name for name in TRICKS if name and "\0" not in name and len(name) < 4000])
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
)  # fmt: skip

numbers = st.text(HEX, max_size=9)
addresses_like = (
    st.builds("{}:{}:{}.{}".format, numbers, numbers, numbers, numbers)
    | st.builds("{}:{}.{}".format, numbers, numbers, numbers)
    | st.from_regex(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", fullmatch=True)
)
selectors = (
    addresses_like
    | tricky_text
    | st.builds("{}{}".format, st.sampled_from(["group:", "class:", "/dev/", "0000:", "*"]), tricky_text)
    | st.text("0123456789abcdef:.*?[]!-", max_size=20)
)


@st.composite
def config_spaces(draw: st.DrawFn) -> bytes:
    """Configuration space whose chains are drawn: they may loop, and point anywhere."""
    config = bytearray(draw(st.sampled_from([64, 256, 4096])))
    config[0x06] = 0x10
    config[0x0E] = draw(st.sampled_from([0, 0x80, 1, 2]) | st.integers(0, 255))
    config[0x34] = draw(st.integers(0, 255))
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.integers(0x40, 0xFC)) if len(config) > 64 else 0x30
        struct.pack_into(
            "<BBH", config, at, draw(st.sampled_from([1, 5, 0x10, 0x11])), *draw(_pointer_and_word)
        )
    if len(config) > 256:
        for _ in range(draw(st.integers(0, 8))):
            at = draw(st.sampled_from([0x100, 0xFF8, 0xFFC]) | st.integers(0x40, 0x3FE).map(lambda n: n * 4))
            header = draw(st.integers(0, 0xFFF)) << 20 | draw(st.sampled_from([0, 1, 0xD, 0x10]))
            struct.pack_into("<I", config, at, header)
    return bytes(config[: draw(st.integers(0, len(config)) | st.just(len(config)))])


_pointer_and_word = st.tuples(st.integers(0, 255), st.integers(0, 0xFFFF))

pci_ids = st.lists(
    st.sampled_from([
        b"8086  Intel", b"\t10d3  82574L", b"\t\t8086 0000  Sub", b"C 02  Network", b"\t00  Ethernet",
        b"C 00  None", b"", b"#", b"\t", b"\t\t\t", b"8086", b"808\xff  x", b"C ", b"8086  ",
    ]) | st.binary(max_size=30),
    max_size=20,
).map(b"\n".join)  # fmt: skip


@st.composite
def aliases(draw: st.DrawFn, *, fields: tuple[str, ...]) -> str:
    """A line as depmod writes it, near to a device's own fields."""
    values = [draw(st.sampled_from(["*", field, "0" * len(field)])) for field in fields]
    body = "".join(map("".join, zip(ALIAS_FIELDS, values, strict=True)))
    prefix = draw(st.sampled_from(["alias vfio_pci:", "alias pci:", "#"]))
    return f"{prefix}{body} {draw(st.sampled_from(['vfio_pci', 'a_vfio_pci', 'b_vfio_pci', '../c', 'd e']))}"
