"""Two hundred random faults, while drivers change and while recovery runs: no state is lost.

A fault hits one operation of a random sequence, and sometimes the recovery after it. Then ``recover`` and
``restore`` alone must bring the devices back to the states that they had first. The number of a fault
determines its sequence, so a failure can be repeated.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.support.binding_bench import E1000E, EDU, NVME, SIBLINGS, Bench
from tests.support.guest import await_, remove, rescan, settle, tell_udevd
from tests.support.interrupted_plans import Run, is_killed, leftovers
from vfiotool.binding import plan_writer
from vfiotool.binding.operations import Binding
from vfiotool.binding.plan import EMPTY_PLAN, Plan
from vfiotool.cli.signals import exit_on_signals
from vfiotool.errors import VfioToolError
from vfiotool.testing import FakeHost

BATCHES, FAULTS = 10, 20
UNITS = ((EDU,), (E1000E,), (NVME,), SIBLINGS)
ERRNOS = (errno.EINVAL, errno.ENOMEM, errno.ENODEV, errno.EBUSY, errno.EPERM, errno.EIO)
# What a network card of the guest needs if the process is in another network namespace.
IN_NAMESPACE = ("network", "route", "namespace")
_CLONE_NEWNET = 0x40000000

Operation = Callable[[Binding], Plan]
Fault = Callable[[Bench, random.Random, Operation], None]


def bind(driver: str, addresses: Sequence[str]) -> Operation:
    return lambda binding: binding.bind(addresses, driver)


def random_operation(bench: Bench, chance: random.Random) -> tuple[str, Operation]:
    """Return an operation on some devices, with its description."""
    units = chance.sample(UNITS, chance.randint(1, len(UNITS)))
    addresses = [address for unit in units for address in unit]
    recorded = bench.binding().recorded()
    operations: dict[str, Operation] = {
        "bind": bind("vfio-pci", addresses),
        "bind to a stub": bind("pci-stub", addresses),
        "unbind": lambda binding: binding.unbind(addresses),
    }
    if recorded:
        operations |= {
            "restore": lambda binding: binding.restore(recorded),
            "restore one": lambda binding: binding.restore(recorded[:1]),
        }
    name = chance.choice([*operations])
    return f"{name} {' '.join(addresses)}", operations[name]


def seeded(number: int) -> random.Random:
    return random.Random(number)  # noqa: S311 - the test must be repeatable


def attempted(run: Operation) -> Run:
    """Return the operation without its error, which is the error of the fault."""

    def attempt(binding: Binding) -> Plan:
        try:
            return run(binding)
        except VfioToolError:
            return EMPTY_PLAN

    return attempt


def writes_of(bench: Bench, run: Operation) -> int:
    """Return how many writes an operation does, at least 1."""
    return max(1, len(attempted(run)(bench.binding(dry_run=True)).steps))


def failing_write(bench: Bench, chance: random.Random, run: Operation) -> None:
    bench.machine.fail_once(chance.randrange(writes_of(bench, run)), chance.choice(ERRNOS))
    attempted(run)(bench.binding())


def killed(bench: Bench, chance: random.Random, run: Operation) -> None:
    is_killed(bench, attempted(run), chance.randrange(2 * writes_of(bench, run)))


def terminated(bench: Bench, chance: random.Random, run: Operation) -> None:
    at = chance.randrange(writes_of(bench, run))

    def ended() -> None:
        seen: list[str] = []

        def count(path: str) -> None:
            if len(seen) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            seen.append(path)

        bench.machine.on_write = count
        exit_on_signals()
        attempted(run)(bench.binding())

    in_child(ended)


def from_another_network(bench: Bench, chance: random.Random, run: Operation) -> None:
    def elsewhere() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        attempted(run)(bench.binding(allowed=IN_NAMESPACE))

    assert in_child(elsewhere) == 0


def without_udevd(bench: Bench, chance: random.Random, run: Operation) -> None:
    """Run an operation while udevd processes no events."""
    settle()
    tell_udevd("--stop-exec-queue")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plan_writer, "UDEV_SECONDS", 0.2)
            attempted(run)(bench.binding())
    finally:
        tell_udevd("--start-exec-queue")
        settle()


def removed(bench: Bench, chance: random.Random, run: Operation) -> None:
    """Take a device off its bus before a write, and find it again at the end."""
    address, at = chance.choice([address for unit in UNITS for address in unit]), len(bench.machine.writes)
    at += chance.randrange(writes_of(bench, run))

    def take(path: str) -> None:
        if len(bench.machine.writes) == at + 1:
            remove(address)

    bench.machine.on_write = take
    attempted(run)(bench.binding())
    bench.machine.on_write = None
    rescan(address)


ANYWHERE: tuple[Fault, ...] = (failing_write, killed, terminated)
ON_A_KERNEL: tuple[Fault, ...] = (from_another_network, without_udevd, removed)


def in_child(body: Callable[[], None]) -> int:
    """Run a function in a child, and return the child's exit code."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        except SystemExit:
            status = 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def told(story: list[str]) -> Iterator[None]:
    """Add the sequence of operations and faults to an error of the block."""
    try:
        yield
    except BaseException as error:
        error.add_note("\n".join(story))
        raise


@pytest.mark.quick_on_fake
@pytest.mark.parametrize(
    "batch", [pytest.param(one, marks=pytest.mark.full if one else ()) for one in range(BATCHES)]
)
def test_no_fault_loses_a_state(bench: Bench, batch: int) -> None:
    is_fake = isinstance(bench.machine.machine, FakeHost)
    faults = ANYWHERE if is_fake else ANYWHERE + ON_A_KERNEL
    first = bench.states()
    for number in range(batch * FAULTS, (batch + 1) * FAULTS):
        story = [f"fault {number}"]
        with told(story):
            disturb(bench, seeded(number), faults, story)
            bench.binding().recover()
            bench.binding().restore(bench.binding().recorded())
            if not is_fake:
                await_("drivers have probed", lambda: bench.states() == first)
            assert bench.states() == first
            assert (bench.binding().recorded(), leftovers(bench)) == ([], [])


def disturb(bench: Bench, chance: random.Random, faults: Sequence[Fault], story: list[str]) -> None:
    """Run some operations, the last of them with a fault; half of the time, recovery has a fault too."""
    for _ in range(chance.randrange(3)):
        name, run = random_operation(bench, chance)
        story.append(name)
        attempted(run)(bench.binding())
    name, run = random_operation(bench, chance)
    fault = chance.choice(faults)
    story.append(f"{name}, {fault.__name__}")
    fault(bench, chance, run)
    if chance.random() < 0.5:
        fault = chance.choice(faults)
        story.append(f"recover, {fault.__name__}")
        fault(bench, chance, lambda binding: binding.recover())
    bench.machine.fail_once(-1, 0)
