"""The machines that the contract tests run on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.bench import Bench, fake_bench, kernel_bench


@pytest.fixture(
    params=[
        pytest.param("6.12.0", id="fake-6.12"),
        pytest.param("5.10.0", id="fake-5.10"),
        pytest.param("kernel", marks=pytest.mark.needs_guest),
    ],
)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A machine, left as it was found; the fakes are of both ends of what kernels do."""
    state_dir = str(tmp_path / "state")
    if request.param == "kernel":
        made = kernel_bench(state_dir)
    else:
        made = fake_bench(str(tmp_path / "host"), state_dir, request.param)
    former = made.states()
    yield made
    made.put_back(former)
