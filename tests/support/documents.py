"""The documents of the repository as tests read them: their blocks, and the commands in a block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

NOT_RUN = {
    "./scripts/demo": "installs Debian packages and starts a guest of its own; .ci/run tests it",
    "./scripts/test": "is the program that runs this test",
    "scripts/build-kernel": "builds a kernel for minutes; scripts/test calls it",
    "sudo apt install gcc libc6-dev python3-dev python3-venv kmod pci.ids": (
        "needs a network; scripts/lib.sh does it before each run of the tests"
    ),
    "python3 -m venv ~/vfiotool": "scripts/lib.sh does it before each run of the tests",
    "~/vfiotool/bin/pip install .": "needs a network; scripts/lib.sh does it before each run of the tests",
    "sudo ln -s ~/vfiotool/bin/vfiotool /usr/local/bin/": "changes the machine outside of any test's folder",
    "sudo apt install gcc libc6-dev python3-dev python3-venv kmod udev pci.ids "
    "qemu-system-x86 busybox-static": (
        "needs a network; scripts/lib.sh does it before each run of the tests"
    ),
    "python3 -m venv .venv": "writes to the checkout; scripts/lib.sh makes an environment elsewhere",
    ".venv/bin/pip install -e '.[test]'": "needs a network, and writes to the checkout",
    ". .venv/bin/activate": "changes a shell; there is nothing to see",
    "ruff check": "scripts/test does it",
    "ruff format --check": "scripts/test does it",
    "mypy": "scripts/test does it",
    "lint-imports": "scripts/test does it",
    "pytest tests/unit/test_address.py": "scripts/test does it",
    "scripts/test tests/unit -k address": "runs this test too, if nothing selects others",
    "scripts/test --kernel 6.12 --machine amd tests/lab/test_see.py -k lspci": (
        "starts a guest; tests/lab/test_in_guests.py does it"
    ),
    "sudo update-initramfs -u": "builds an initramfs for minutes; tests/lab/test_persist.py builds one",
    "vfiotool lab run -- pytest tests/contract": "takes many minutes; tests/lab/test_in_guests.py does it",
    "vfiotool lab run --kernel debug -- pytest tests/contract/test_dma.py": (
        "takes minutes; tests/lab/test_in_guests.py does it"
    ),
    "vfiotool lab run -k 6.12 -- env VFIOTOOL_CYCLES=1000 python -m pytest -s tests/lab/test_cycles.py": (
        "takes half an hour; scripts/test --full runs five cycles"
    ),
    "vfiotool lab run --kernel 6.12 -- vfiotool stress all 0000:00:10.0": (
        "takes minutes; tests/lab/test_stress.py runs all workloads"
    ),
    "vfiotool lab run --kernel 6.12 --cpus 1 --timeout 1000 -- vfiotool stress all 0000:00:10.0 0000:00:12.0 "
    "0000:01:00.0 0000:03:01.0 0000:03:02.0 --duration 600 --seed 35": "takes ten minutes",
    "vfiotool lab run --kernel 5.10 -- sh -c 'sysctl -q kernel.panic_on_oops=0; vfiotool stress viability "
    "0000:03:01.0 0000:03:02.0 --cycles 1 --allow-kernel-crash --json'": (
        "crashes the kernel of its guest; tests/lab/test_crash_in_guests.py does it"
    ),
}
_EXAMPLES = "quotes a machine that is not the lab's; tests/unit/test_reading_devices.py runs it"
NOT_RUN |= {
    f"sudo vfiotool show {address}": _EXAMPLES
    for address in (
        *("0000:00:0e.0", "0000:00:1c.0", "0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:03:10.0"),
        *("0000:05:04.0", "0000:2f:00.0", "10000:e1:00.0"),
    )
}
NOT_RUN |= dict.fromkeys(
    (
        "sudo vfiotool groups 1",
        "COLUMNS=45 vfiotool list 0000:02:00.0 0000:01:00.0",
        "sudo COLUMNS=45 vfiotool show 0000:03:00.0",
        "sudo vfiotool show 0000:03:00.0 | grep refuses",
    ),
    _EXAMPLES,
)
"""The commands that no test runs as they stand, each with the reason."""

_FENCED = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\S+\.py)\n")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page: ``line`` is where its text begins, counted from 1."""

    page: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that a Python block is, if its first line says so."""
        named = _FILE.match(self.text)
        return named[1] if self.language == "python" and named else None


@dataclass(frozen=True, slots=True)
class Command:
    """A command line of a ``console`` block, and the lines that the page quotes of its output."""

    line: str
    output: tuple[str, ...]


def pages() -> list[str]:
    """Return the paths of all documents, from the root of the repository."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def read(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in their order."""
    text = read(page)
    return [
        Block(page, text.count("\n", 0, found.start(2)) + 1, found[1], found[2])
        for found in _FENCED.finditer(text)
    ]


def commands(block: Block) -> Iterator[Command]:
    """Yield the commands of a ``console`` block; each begins with ``$``."""
    _, *parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    for part in parts:
        line, *output = part.splitlines()
        yield Command(line, tuple(output))


def program(page: str) -> str:
    """Return the Python blocks of a page as the one program that they are; files are left out."""
    return "\n".join(
        block.text for block in blocks(page) if block.language == "python" and block.file is None
    )


def write_files(page: str, folder: Path) -> list[str]:
    """Write the Python blocks of a page that are files into a folder, and return their names."""
    named = [(block.file, block.text) for block in blocks(page) if block.file is not None]
    for name, text in named:
        (folder / name).write_text(text, encoding="utf-8")
    return [name for name, _text in named]


def mismatch(quoted: tuple[str, ...], printed: str) -> str | None:
    """Return how a quoted output differs from a printed one, or None if they agree.

    ``…`` within a quoted line stands for any text, and ``…`` as a line of its own for any lines. Spaces
    at the ends of lines do not count.
    """
    lines = [r"(?:.*\n)*" if line == "…" else _pattern(line) + r"\n" for line in quoted]
    actual = "".join(f"{line.rstrip()}\n" for line in printed.splitlines())
    if re.fullmatch("".join(lines), actual):
        return None
    return "quoted:\n" + "\n".join(quoted) + f"\nprinted:\n{actual}"


def _pattern(line: str) -> str:
    return ".*".join(re.escape(part) for part in line.rstrip().split("…"))
