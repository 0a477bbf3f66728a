"""How a command ended: what the tests of the command line look at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended, and what it printed."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """Its JSON; the test fails where stdout has anything else."""
        return json.loads(self.stdout)
