"""Guests that run beside the tests of the host are not disturbed by these."""

from __future__ import annotations

import pytest

from tests import tiers
from tests.support import guest_runs


def test_a_guest_starts_in_an_environment_that_no_test_has_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that started while a test had a program of its own named qemu-system-x86_64 was lost."""
    guest = next(one for one in tiers.FULL if not one.needs)
    before = guest_runs.environment(guest), guest_runs.log_of(guest)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    assert (guest_runs.environment(guest), guest_runs.log_of(guest)) == before
