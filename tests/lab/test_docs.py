"""The Python in the guides, as their readers would run it: all of a page is one program."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.support import EDU, driver, kernel_complaints, path
from vfiotool.binding.operations import bound

pytestmark = pytest.mark.needs_guest

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def on_vfio(tmp_path: Path) -> Iterator[None]:
    """edu where the guide wants it."""
    with bound(EDU, state_dir=str(tmp_path / "state")):
        yield


def run(page: str, folder: Path) -> str:
    """Run the program of a page, and return what it printed."""
    found = _BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    script = folder / "try.py"
    script.write_text("\n".join(found), encoding="utf-8")
    before = kernel_complaints()
    ended = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert kernel_complaints() == before
    return ended.stdout


def test_driving(on_vfio: None, tmp_path: Path) -> None:
    printed = run("driving.md", tmp_path)
    assert f"'ident': {0x010000ED}" in printed
    assert "1048576 bytes in 256 mappings" in printed


def test_getting_started(tmp_path: Path) -> None:
    before = driver(EDU), Path(path(EDU, "driver_override")).read_text()
    assert "0x10000ed is at the start of BAR0" in run("getting-started.md", tmp_path)
    assert (driver(EDU), Path(path(EDU, "driver_override")).read_text()) == before
