"""The machines of the contract tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import vfiotool
from tests.support.address_spaces import MODES, OTHER, Space, opened_space, params, write
from tests.support.binding_bench import EDU, Bench, fake_bench, kernel_bench

ENTRY_LIMIT = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit"


@pytest.fixture(
    params=[
        pytest.param("6.12.0", id="fake-6.12"),
        pytest.param("5.10.0", id="fake-5.10"),
        pytest.param("kernel", marks=pytest.mark.needs_guest),
    ],
)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A machine that is restored after the test; the fakes are of an old and of a new kernel."""
    state_dir = str(tmp_path / "state")
    if request.param == "kernel":
        made = kernel_bench(state_dir)
    else:
        made = fake_bench(str(tmp_path / "host"), state_dir, request.param)
    former = made.states()
    yield made
    made.put_back(former)


@pytest.fixture(scope="module")
def vfio_devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """edu and a network card on vfio-pci for all tests of a module: binding takes time."""
    with vfiotool.bound(EDU, OTHER, state_dir=str(tmp_path_factory.mktemp("state"))):
        yield


@pytest.fixture(params=params(*MODES))
def space(request: pytest.FixtureRequest) -> Iterator[Space]:
    """edu, open in an address space of each mode; the test must leave no fd open and no memory pinned."""
    yield from opened_space(request)


@pytest.fixture
def limit_of_eight() -> Iterator[None]:
    """Containers that are opened meanwhile accept eight mappings."""
    if not os.path.exists(ENTRY_LIMIT):
        yield
        return
    with open(ENTRY_LIMIT) as parameter:
        former = parameter.read()
    write(ENTRY_LIMIT, "8")
    yield
    write(ENTRY_LIMIT, former)
