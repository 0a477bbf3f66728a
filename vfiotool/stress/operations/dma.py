"""DMA: map and unmap memory in the address space of the group, and count mapped bytes and pinned pages."""

from __future__ import annotations

import errno
import mmap
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, cast

from vfiotool._shim import ffi, lib
from vfiotool.stress.group.harness import GroupHarness
from vfiotool.stress.model.dma_mappings import Mappings
from vfiotool.stress.model.operation import ScriptForm
from vfiotool.stress.operations.base import NonBlockingFamily
from vfiotool.stress.record import Call, Expectation, Outcome
from vfiotool.vfio.info import IovaRange
from vfiotool.vfio.iommu.iommufd import Iommufd
from vfiotool.vfio.uapi import DmaMapFlags, Extension

SLOTS = 32
SLOT_BYTES = 64 << 10
IOVA = 0x1000000
"""The IOVA of the first slot; the device edu, with 28 address bits, reaches all slots."""

_STEPS = 60
_MOST_SLOTS = 4
_PINS_EACH = 6
_EVERYTHING = (IovaRange(0, (1 << 64) - 1),)
_PINNED = re.compile(
    rb"^Vm(?:Lck|Pin):\s*(\d+) kB$", re.MULTILINE
)  # type1 counts in one, iommufd in the other


@dataclass
class _Space:
    """An IO address space. ``owner`` is its iommufd, or the number of the container's IOMMU."""

    owner: Iommufd | int
    fd: int
    ioas: int
    mappings: Mappings = field(init=False)

    def __post_init__(self) -> None:
        self.mappings = Mappings(is_ioas=self.ioas != 0)


class DmaOperations(NonBlockingFamily):
    """The family of DMA, in the container to which the group is set, if it has an IOMMU, or else in the IOAS.

    A slot is 64 KiB of this process's memory, always at the same IOVA. ``pins`` is the number of pages that
    the kernel accounts to this process, less the number when the family was made.
    """

    forms: ClassVar[Mapping[str, ScriptForm]] = {
        "map": ScriptForm(
            "map_dma", ("space", "slot", "slots"), in_ioas=ScriptForm("map_ioas", ("slot", "slots"))
        ),
        "unmap": ScriptForm(
            "unmap_dma",
            ("space", "slot", "slots"),
            returns_value=True,
            in_ioas=ScriptForm("unmap_ioas", ("slot", "slots"), returns_value=True),
        ),
        "unmap all": ScriptForm(
            "unmap_dma_all",
            ("space",),
            returns_value=True,
            in_ioas=ScriptForm("unmap_ioas_all", returns_value=True),
        ),
        "pins": ScriptForm("pins", returns_value=True),
    }

    def __init__(self, harness: GroupHarness) -> None:
        self._harness = harness
        self._container: _Space | None = None
        self._ioas: _Space | None = None
        self._pinned_before = pinned_pages()

    def choose(self, rng: random.Random) -> Iterator[Call]:
        """Yield the calls of a cycle while there is an address space; execute each before taking the next."""
        for step in range(_STEPS):
            space = self._space()
            if space is None:
                return
            yield Call("pins") if step % _PINS_EACH == 0 else _chosen(rng, space.mappings)
        yield Call("pins")

    def expect(self, call: Call) -> Expectation | None:
        space = self._space()
        if call.name == "pins":
            pages = self._pages()
            return None if pages is None else Expectation(value=pages)
        if space is None:
            return None
        if call.name == "unmap all":
            return self._expect_unmap_all(space)
        slot, slots = _range(call)
        if slot < 0 or slots < 1 or slot + slots > SLOTS:
            return None
        if call.name == "map":
            return Expectation(frozenset((space.mappings.map(slot, slots),)))
        code, gone = space.mappings.unmap(slot, slots)
        return Expectation(frozenset((code,)), value=space.mappings.size(gone) * SLOT_BYTES)

    def do(self, call: Call, expected: Expectation) -> Outcome:
        if call.name == "pins":
            return Outcome(value=pinned_pages() - self._pinned_before)
        space = cast("_Space", self._space())  # as ``expect`` checked
        if call.name == "unmap all":
            outcome = _outcome(lib.vt_dma_unmap_all(space.fd, space.ioas))
            if expected.allows(outcome) and not outcome.errno:
                space.mappings.drop([start for start, _ in space.mappings.all])
            return outcome
        slot, slots = _range(call)
        iova, size = IOVA + slot * SLOT_BYTES, slots * SLOT_BYTES
        if call.name == "map":
            access = DmaMapFlags.READ | DmaMapFlags.WRITE
            address = self._memory[1] + slot * SLOT_BYTES
            outcome = _outcome(lib.vt_dma_map(space.fd, space.ioas, address, iova, size, access))
            if expected.allows(outcome) and not outcome.errno:
                space.mappings.add(slot, slots)
            return outcome
        outcome = _outcome(lib.vt_dma_unmap(space.fd, space.ioas, iova, size))
        if expected.allows(outcome):
            space.mappings.drop(space.mappings.unmap(slot, slots)[1])
        return outcome

    def wind_down(self) -> Iterator[Call]:
        """Yield the call that unmaps everything by a range: up to 5.11 the kernel has no unmap of all."""
        space = self._space()
        if space is not None and space.mappings.count:
            yield Call("unmap", {"slot": 0, "slots": SLOTS})

    def abandon(self) -> None:
        """Forget the mappings: the kernel removes them when the fds are closed."""
        self._container = self._ioas = None

    def _expect_unmap_all(self, space: _Space) -> Expectation:
        can = space.ioas or lib.vt_container_check_extension(space.fd, Extension.UNMAP_ALL) > 0
        code = 0 if can else errno.EINVAL
        return Expectation(frozenset((code,)), value=space.mappings.count * SLOT_BYTES)

    def _space(self) -> _Space | None:
        """Update the address spaces; return the one in which memory can be mapped, if any."""
        ioas, container = self._look_at_iommufd(), self._look_at_container()
        return container or ioas

    def _look_at_container(self) -> _Space | None:
        state, clients = self._harness.state, self._harness.clients
        if state.container is None or not state.has_iommu:
            self._container = None
            return None
        if not state.containers[state.container].is_open:
            return None
        if not clients.owns_container(state.container):
            self._container = None
            return None
        iommu = clients.iommu(state.container)
        if self._container is None or self._container.owner != iommu:
            self._container = _Space(iommu, clients.first.container(state.container), 0)
        return self._container

    def _look_at_iommufd(self) -> _Space | None:
        owner = self._harness.clients.first.iommufd
        if owner is None:
            self._ioas = None
        elif self._ioas is None or self._ioas.owner is not owner:
            self._ioas = _Space(owner, owner.fileno(), owner.ioas)
        return self._ioas

    def _pages(self) -> int | None:
        """Return the number of pages that must be pinned, or None if the group's state does not tell it.

        That is the case if the fd of a container was closed while the group keeps the container: meanwhile
        the container may have lost its IOMMU and got another.
        """
        slots, state = 0, self._harness.state
        if self._container is not None and self._container.mappings.count:
            if state.container is None or not state.containers[state.container].is_open:
                return None
            slots += self._container.mappings.count
        if self._ioas is not None and self._ioas.mappings.count and _is_attached(self._ioas):
            slots += self._ioas.mappings.count
        return slots * SLOT_BYTES // mmap.PAGESIZE

    @cached_property
    def _memory(self) -> tuple[mmap.mmap, int]:
        """The memory of the slots, and its address. No child inherits it: a fork would copy pinned pages."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        memory = mmap.mmap(-1, SLOTS * SLOT_BYTES, flags=flags)
        memory.madvise(mmap.MADV_DONTFORK)
        return memory, int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))


def pinned_pages() -> int:
    """Return the number of pages that the kernel accounts to this process as locked or pinned."""
    with open("/proc/self/status", "rb", buffering=0) as status:
        kilobytes = sum(map(int, _PINNED.findall(status.read())))
    return (kilobytes << 10) // mmap.PAGESIZE


def _chosen(rng: random.Random, mappings: Mappings) -> Call:
    """Choose a call that changes the mappings more often than one that the kernel refuses."""
    kind = rng.choices(("map", "unmap one", "unmap any", "unmap all"), (12, 8, 4, 1))[0]
    if kind == "unmap all":
        return Call(kind)
    if kind == "unmap one" and mappings.count:
        slot, slots = rng.choice(mappings.all)
    else:
        slot = rng.randrange(SLOTS)
        slots = min(rng.randint(1, _MOST_SLOTS), SLOTS - slot)
    return Call("map" if kind == "map" else "unmap", {"slot": slot, "slots": slots})


def _range(call: Call) -> tuple[int, int]:
    return int(call.arguments["slot"]), int(call.arguments["slots"])


def _outcome(result: int) -> Outcome:
    return Outcome(-result) if result < 0 else Outcome(value=result)


def _is_attached(space: _Space) -> bool:
    """Return True if a device, which narrows the ranges, is attached: without a device, nothing is pinned."""
    return cast("Iommufd", space.owner).info().iova_ranges != _EVERYTHING
