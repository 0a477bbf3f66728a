"""The example of docs/testing.md, as its readers would have it in a folder."""

from __future__ import annotations

import re
from pathlib import Path

_BLOCK = re.compile(r"```python\n# (\S+)\n(.*?)```", re.DOTALL)


def write_example(folder: Path) -> list[str]:
    """Write the files of the example, and return their names."""
    text = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
    found = _BLOCK.findall(text)
    for name, content in found:
        (folder / name).write_text(content)
    return [name for name, _content in found]
