"""Fixtures of the unit tests: a fake machine, and the command line run on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.cli_result import Result
from vfiotool import cli
from vfiotool.cli.settings import Settings
from vfiotool.host.tree import Tree
from vfiotool.testing import FakeHost

# A busy machine may slow any example down, so none has a deadline.
_ANY_MACHINE = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
settings.register_profile("full", _ANY_MACHINE)
settings.register_profile("quick", _ANY_MACHINE, derandomize=True, database=None, max_examples=25)


def pytest_configure(config: pytest.Config) -> None:
    """Have the quick tier try the same few examples each time, and the full one others on each run."""
    settings.load_profile("full" if config.getoption("full") else "quick")


@pytest.fixture
def state_dir(tmp_path: Path) -> str:
    """A state folder that is not there yet."""
    return str(tmp_path / "state")


@pytest.fixture
def host(tmp_path: Path, state_dir: str) -> FakeHost:
    """An empty machine with a kernel of today."""
    return FakeHost(str(tmp_path / "host"), state_dir=state_dir)


@pytest.fixture
def old_host(tmp_path: Path, state_dir: str) -> FakeHost:
    """An empty machine with a kernel of the first era."""
    return FakeHost(str(tmp_path / "old"), kernel="5.10.0-46-amd64", state_dir=state_dir)


Run = Callable[..., Result]


@pytest.fixture
def vfiotool(
    host: FakeHost, state_dir: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the command line as if ``host`` were the running machine."""
    monkeypatch.setattr(Settings, "tree", host.tree)
    monkeypatch.setattr(Tree, "is_live", True)
    monkeypatch.setattr("vfiotool.binding.operations.LiveMachine", lambda state_dir: host)

    def run(*args: str) -> Result:
        capsys.readouterr()
        status = cli.run(["--state-dir", state_dir, *args])
        return Result(status, *capsys.readouterr())

    return run
