"""The public API, re-exported; a name's module is imported when the name is first used."""

from __future__ import annotations
