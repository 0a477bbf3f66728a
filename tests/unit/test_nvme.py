"""The NVMe driver over plain memory: commands, PRPs, the queue in C, and a misbehaving controller."""

from __future__ import annotations

import contextlib
import threading
import time
from array import array
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.nvme_queue_model import CSTS, DOORBELLS, IOVA, PAGE, Command, QueueModel, plain_memory
from tests.support.strategies import examples
from vfiotool._shim import ffi, lib
from vfiotool.drivers.nvme import NamespaceInfo, NvmeError, NvmeStatusError, NvmeTimeoutError, commands
from vfiotool.drivers.nvme.commands import READ, WRITE, Completion
from vfiotool.drivers.nvme.identify import SIZE, ControllerInfo, parse_active
from vfiotool.drivers.nvme.io_queue import IoQueue
from vfiotool.drivers.nvme.queue_pair import make_ops
from vfiotool.drivers.nvme.registers import NvmeRegisters, doorbells
from vfiotool.errors import ClosedError, UsageError, VfioToolError
from vfiotool.vfio.dma.dma import Dma
from vfiotool.vfio.dma.mapping import Buffer

EINVAL = -22
DATA = IOVA + (1 << 20)
SHORT = 0.002


# Registers and commands


def test_registers_and_doorbells_are_at_the_specified_offsets() -> None:
    assert {name: register.offset for name, register in NvmeRegisters._members.items()} == {
        "cap": 0x0, "vs": 0x8, "cc": 0x14, "csts": 0x1C, "aqa": 0x24, "asq": 0x28, "acq": 0x30,
    }  # fmt: skip
    assert doorbells(0, 0) == (0x1000, 0x1004)
    assert doorbells(3, 0) == (0x1018, 0x101C)
    assert doorbells(3, 4) == (0x1000 + 6 * 64, 0x1000 + 7 * 64)


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        (commands.flush(3), {"opcode": 0x00, "nsid": 3}),
        (commands.identify_controller(0xA000), {"opcode": 0x06, "prp1": 0xA000, "cdw10": 1}),
        (commands.identify_namespace(2, 0xA000), {"opcode": 0x06, "nsid": 2, "prp1": 0xA000}),
        (
            commands.identify_active_namespaces(7, 0xA000),
            {"opcode": 0x06, "nsid": 7, "prp1": 0xA000, "cdw10": 2},
        ),
        (commands.set_number_of_queues(4), {"opcode": 0x09, "cdw10": 7, "cdw11": 0x0003_0003}),
        (
            commands.create_completion_queue(5, 64, 0xB000, None),
            {"opcode": 0x05, "prp1": 0xB000, "cdw10": 0x003F_0005, "cdw11": 0x1},
        ),
        (
            commands.create_completion_queue(5, 64, 0xB000, 9),
            {"opcode": 0x05, "prp1": 0xB000, "cdw10": 0x003F_0005, "cdw11": 0x0009_0003},
        ),
        (
            commands.create_submission_queue(5, 64, 0xC000),
            {"opcode": 0x01, "prp1": 0xC000, "cdw10": 0x003F_0005, "cdw11": 0x0005_0001},
        ),
        (commands.delete_submission_queue(5), {"opcode": 0x00, "cdw10": 5}),
        (commands.delete_completion_queue(5), {"opcode": 0x04, "cdw10": 5}),
    ],
)
def test_commands_have_the_specified_layout(command: bytes, fields: dict[str, int]) -> None:
    assert Command.of(command)._asdict() == dict.fromkeys(Command._fields, 0) | fields


# PRPs


def pages_of(iova: int, size: int) -> list[int]:
    """Return the PRP entries of a piece of memory by section 4.1.1."""
    return sorted({max(at // PAGE * PAGE, iova) for at in (*range(iova, iova + size, PAGE), iova + size - 1)})


def prps(iova: int, size: int, room: int) -> tuple[int, list[int], list[int]]:
    """Return the result of the C function, PRP1 and PRP2, and the list."""
    entries = ffi.new("uint64_t[]", room + 1)
    pair = ffi.new("uint64_t[2]")
    result = lib.vt_nvme_prps(iova, size, PAGE, entries, 0xBEEF000, room, pair)
    assert entries[room] == 0
    return result, list(pair), list(entries)[:room]


@given(
    st.integers(0, (1 << 62) - 1)
    .map(lambda word: word * 4)
    .filter(lambda iova: iova < (1 << 64) - 40 * PAGE),
    st.integers(1, 40 * PAGE) | st.sampled_from([PAGE, 2 * PAGE, 3 * PAGE]),
)
def test_prps_are_those_of_a_naive_model(iova: int, size: int) -> None:
    expected = pages_of(iova, size)
    result, pair, entries = prps(iova, size, 64)
    assert result == 0
    assert pair[0] == expected[0]
    if len(expected) <= 2:
        assert pair[1:] == (expected[1:] or [0])
        assert not any(entries)
    else:
        assert pair[1] == 0xBEEF000
        assert entries == expected[1:] + [0] * (64 - len(expected) + 1)


@pytest.mark.parametrize(
    ("iova", "size", "room"),
    [
        (IOVA, 0, 9),
        (IOVA + 2, 8, 9),
        ((1 << 64) - PAGE, PAGE + 1, 9),
        (IOVA, 4 * PAGE, 2),
        (IOVA + 4, 3 * PAGE, 2),
    ],
)
def test_invalid_prps_are_refused(iova: int, size: int, room: int) -> None:
    result, _, entries = prps(iova, size, room)
    assert result == EINVAL
    assert not any(entries)


@pytest.mark.parametrize(("offset", "size"), [(0, 3 * PAGE), (4, 2 * PAGE), (PAGE - 4, 2 * PAGE + 8)])
def test_a_prp_list_may_be_full(offset: int, size: int) -> None:
    result, _, entries = prps(IOVA + offset, size, 2 + (offset > 4))
    assert result == 0
    assert all(entries)


def test_each_command_in_flight_has_a_separate_prp_list() -> None:
    model = QueueModel(entries=4, list_entries=8)
    places = [DATA, DATA + 8 * PAGE, DATA + 16 * PAGE]
    for place in places:
        model.pair.submit_op(READ, 0, 64, place)  # 32 KiB: 8 pages
    model.fetch()
    assert len({command.prp2 for command in model.seen}) == 3
    for command, place in zip(model.seen, places, strict=True):
        at = command.prp2 - IOVA
        entries = array("Q", model.memory[at : at + 7 * 8])
        assert [command.prp1, *entries] == pages_of(place, 32 << 10)
        assert at // PAGE == (at + 7 * 8 - 1) // PAGE, "a list must not cross a page"


# The queue pair


def test_reads_and_writes_have_the_specified_fields() -> None:
    model = QueueModel()
    model.pair.submit_op(READ, 0x1_2345_6789, 2, DATA)
    model.pair.submit_op(WRITE, 7, 15, DATA + 512)
    model.fetch()
    zero = dict.fromkeys(Command._fields, 0)
    assert [command._replace(cid=0)._asdict() for command in model.seen] == [
        zero | {"opcode": 2, "nsid": 1, "prp1": DATA, "cdw10": 0x2345_6789, "cdw11": 1, "cdw12": 1},
        zero | {"opcode": 1, "nsid": 1, "prp1": DATA + 512, "prp2": DATA + PAGE, "cdw10": 7, "cdw12": 14},
    ]


@given(st.data())
def test_each_command_has_its_own_completion_in_any_order(data: st.DataObject) -> None:
    """A queue pair against a dict: each command completes once, with its own words, in any order."""
    model = QueueModel(entries=data.draw(st.integers(2, 9)))
    in_flight: dict[int, int] = {}
    done: list[Completion] = []
    for word in range(data.draw(st.integers(0, 60))):
        step = data.draw(st.sampled_from(["submit", "submit", "complete", "complete", "poll"]))
        if step == "submit" and len(in_flight) + len(done) < model.entries - 1:
            cid = model.pair.submit(commands.command(0x7F, nsid=word))
            assert cid not in in_flight
            in_flight[cid] = word
        elif step == "complete" and in_flight:
            model.fetch()
            cid = data.draw(st.sampled_from(sorted(in_flight)))
            word = in_flight.pop(cid)
            assert model.seen[-1].opcode == 0x7F
            model.complete(cid, status=word & 0x7FFF, result=word)
            done.append(Completion(cid, word & 0x7FFF, word))
        elif step == "poll":
            limit = data.draw(st.integers(1, 9))
            assert model.pair.poll(limit, 0) == done[:limit]
            del done[:limit]
        assert model.pair.in_flight == len(in_flight) + len(done)
    assert [command.nsid for command in model.seen] == sorted(command.nsid for command in model.seen)


def test_a_full_queue_refuses_commands_and_stays_usable() -> None:
    model = QueueModel(entries=4)
    cids = [model.pair.submit(commands.flush(1)) for _ in range(3)]
    with pytest.raises(UsageError, match="full"):
        model.pair.submit(commands.flush(1))
    with pytest.raises(UsageError, match="full"):
        model.pair.submit_op(READ, 0, 1, DATA)
    model.fetch()
    model.complete(cids[1])
    assert model.pair.poll(9, 0) == [(cids[1], 0, 0)]
    assert model.pair.submit(commands.flush(1)) == cids[1]


def test_entries_of_the_last_pass_are_not_taken_again() -> None:
    model = QueueModel(entries=2)
    for number in range(1, 9):
        assert model.pair.poll(9, 0) == []
        cid = model.pair.submit(commands.flush(1))
        model.fetch()
        assert model.pair.poll(9, 0) == []
        model.complete(cid, result=number)
        assert model.pair.poll(9, 0) == [(cid, 0, number)]


def test_completions_are_acknowledged_late_and_always_have_room() -> None:
    model = QueueModel(entries=8)
    with model.running():
        model.pair.run("reads", make_ops(READ, range(100), 1, DATA), 3, 10)
    assert model.tellings <= 100 // (8 - 1 - 3) + 1


def test_a_job_runs_at_its_depth_and_each_op_has_its_status() -> None:
    most = 0

    def carry_out(command: Command) -> tuple[int, int]:
        nonlocal most
        most = max(most, len(model.waiting))
        return (0x280 if command.lba == 123 else 0), 0

    model = QueueModel(entries=16, interrupts=True, carry_out=carry_out)
    lbas = [*range(1000, 1150), 123, 123, *range(2000, 2048)]
    with pytest.raises(NvmeStatusError, match="number 150, the first of 2") as caught:
        model.pair.run("reads", make_ops(READ, lbas, 1, DATA, 512, 200), 5, 10)
    assert (caught.value.index, caught.value.type, caught.value.code) == (150, 2, 0x80)
    assert [command.lba for command in model.seen] == lbas
    assert [command.prp1 for command in model.seen] == [DATA + 512 * at for at in range(200)]
    assert 1 <= most <= 5
    assert model.pair.in_flight == 0


def test_a_malformed_op_keeps_all_from_the_controller() -> None:
    model = QueueModel(list_entries=4)
    for blocks, iova in [(0, DATA), (65537, DATA), (1, DATA + 2), (8 * 6, DATA), (1, (1 << 64) - 4)]:
        ops = make_ops(READ, [1, 2, 3], 1, DATA)
        ops[2].blocks, ops[2].iova = blocks, iova
        with pytest.raises(UsageError, match="cannot take"):
            model.pair.run("reads", ops, 2, 1)
        with pytest.raises(UsageError, match="cannot take"):
            model.pair.submit_op(READ, 1, blocks, iova)
    with pytest.raises(UsageError, match="cannot take"):
        model.pair.submit_op(0x7F, 1, 1, DATA)
    model.fetch()
    assert model.seen == []


def test_a_job_needs_an_idle_queue() -> None:
    model = QueueModel()
    cid = model.pair.submit(commands.flush(1))
    ops = make_ops(READ, [1], 1, DATA)
    with pytest.raises(UsageError, match="1 commands already"):
        model.pair.run("read", ops, 1, 1)
    model.step()
    with model.running():
        model.pair.run("read", ops, 1, 10)
    assert model.pair.poll(9, 0) == [(cid, 0, 0)]


# Time


def test_a_poll_of_an_idle_queue_ends_in_time() -> None:
    started = time.monotonic()
    assert QueueModel().pair.poll(1, SHORT) == []
    assert time.monotonic() - started >= SHORT


def test_a_command_that_is_late_disturbs_no_other() -> None:
    model = QueueModel(carry_out=lambda command: None)
    with pytest.raises(NvmeTimeoutError, match=r"flush did not complete within 0\.002 s"):
        model.pair.execute("flush", commands.flush(1), SHORT)
    model.fetch()
    cid = model.pair.submit(commands.flush(2))
    model.fetch()
    for command in tuple(model.waiting):
        model.complete(command.cid, result=command.nsid)
    assert model.pair.poll(9, 0) == [(cid, 0, 2)]
    assert model.pair.in_flight == 0


def test_a_late_job_leaves_the_queue_usable_once_it_is_done() -> None:
    model = QueueModel(carry_out=lambda command: None)
    with pytest.raises(NvmeTimeoutError, match="5 of 5 commands did not complete"):
        model.pair.run("reads", make_ops(READ, range(5), 1, DATA), 3, SHORT)
    assert model.pair.in_flight == 3
    with pytest.raises(UsageError, match="3 commands already"):
        model.pair.run("reads", make_ops(READ, range(5), 1, DATA), 3, SHORT)
    model.fetch()
    for command in tuple(model.waiting):
        model.complete(command.cid)
    model.carry_out = lambda command: (0, 0)
    with model.running():
        model.pair.run("reads", make_ops(READ, range(5), 1, DATA), 3, 10)
    assert model.pair.poll(9, 0) == []


def test_completions_of_other_commands_are_kept_for_poll() -> None:
    model = QueueModel(interrupts=True)
    cid = model.pair.submit(commands.flush(5))
    model.step()
    model.pair.execute("flush", commands.flush(6), 10)
    assert model.pair.poll(9, 0) == [(cid, 0, 0)]


# Interrupts


def test_with_a_vector_the_queue_sleeps_until_its_interrupt() -> None:
    model = QueueModel(interrupts=True)
    model.pair.run("reads", make_ops(READ, range(6), 1, DATA), 2, 10)
    assert model.waits == 6
    assert model.registers.read32(DOORBELLS[1]) == 6, (
        "the doorbell is written at once: the next interrupt needs it"
    )
    model.pair.execute("flush", commands.flush(1), 10)
    assert model.waits == 7
    assert model.pair.poll(1, 0) == []
    assert model.waits == 7


def test_with_a_vector_a_failed_controller_is_noticed() -> None:
    model = QueueModel(interrupts=True, carry_out=lambda command: None)
    model.registers.write32(CSTS, 0x3)
    with pytest.raises(NvmeError, match=r"CSTS\.CFS"):
        model.pair.execute("flush", commands.flush(1), 10)


# Controllers that misbehave, fail or vanish


@pytest.mark.parametrize("cid", [6, 7, 8, 0x7FFF, 0xFFFF, 3])
def test_a_completion_of_an_unknown_command_is_an_error(cid: int) -> None:
    model = QueueModel(entries=8)
    model.pair.submit(commands.flush(1))  # its identifier is 0
    model.fetch()
    model.complete(cid)
    for _ in range(2):
        with pytest.raises(NvmeError, match="was not submitted"):
            model.pair.poll(9, 0)
    assert model.pair.in_flight == 1


def test_a_second_completion_of_a_command_is_an_error() -> None:
    model = QueueModel(entries=8)
    cid = model.pair.submit(commands.flush(1))
    model.fetch()
    model.complete(cid)
    model.complete(cid)
    assert model.pair.poll(1, 0) == [(cid, 0, 0)]
    with pytest.raises(NvmeError, match="was not submitted"):
        model.pair.poll(1, 0)


@given(st.binary(min_size=128, max_size=128), st.integers(0, 6))
def test_any_bytes_in_the_completion_queue_are_harmless(noise: bytes, count: int) -> None:
    model = QueueModel(entries=8, carry_out=lambda command: None)
    cids = {model.pair.submit(commands.flush(1)) for _ in range(count)}
    model.memory[model.pair.layout.completions : model.pair.layout.completions + 128] = noise
    taken: list[Completion] = []
    try:
        while some := model.pair.poll(3, 0):
            taken += some
    except NvmeError:
        pass
    assert {one.cid for one in taken} <= cids
    assert len(taken) == len({one.cid for one in taken}) == count - model.pair.in_flight


@pytest.mark.parametrize("csts", [0x3, 0xFFFF_FFFF])
def test_a_controller_that_failed_or_is_gone_is_an_error_and_no_timeout(csts: int) -> None:
    model = QueueModel()
    model.registers.write32(CSTS, csts)
    with pytest.raises(NvmeError, match=r"CSTS\.CFS"):
        model.pair.run("reads", make_ops(READ, range(5), 1, DATA), 3, 10)


def test_a_closed_queue_raises_closed_error() -> None:
    model = QueueModel()
    model.pair.end()
    for use in (
        lambda: model.pair.submit(commands.flush(1)),
        lambda: model.pair.submit_op(READ, 1, 1, DATA),
        lambda: model.pair.execute("flush", commands.flush(1), 1),
        lambda: model.pair.run("reads", make_ops(READ, [1], 1, DATA), 1, 1),
        lambda: model.pair.poll(1, 10),
        lambda: model.pair.poll(1, 0),
    ):
        with pytest.raises(ClosedError, match="queue 1 is closed"):
            use()


def test_a_call_ended_by_close_returns_when_its_memory_is_free() -> None:
    model = QueueModel(carry_out=lambda command: None)
    failures = list[BaseException]()

    def run() -> None:
        try:
            model.pair.run("reads", make_ops(READ, range(9), 1, DATA), 5, 60)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while len(model.waiting) < 5:
        model.fetch()
    model.pair.close()
    assert model.pair.unanswered() == 5
    for answered, command in enumerate(model.waiting, 1):
        model.complete(command.cid)
        assert model.pair.unanswered() == 5 - answered
    thread.join(0.2)
    assert thread.is_alive()
    model.pair.end()
    thread.join(10)
    assert [type(error) for error in failures] == [ClosedError]


def test_unanswered_commands_are_counted_across_the_end_of_the_queue() -> None:
    model = QueueModel(entries=4)
    for _ in range(3):
        for _ in range(3):
            model.pair.submit(commands.flush(1))
        for left in (2, 1, 0):
            model.step()
            assert model.pair.unanswered() == left
        assert len(model.pair.poll(3, 10)) == 3


def test_an_ended_queue_awaits_nothing_and_reads_no_memory() -> None:
    model = QueueModel()
    model.pair.submit(commands.flush(1))
    assert model.pair.unanswered() == 1
    model.pair.end()
    model.memory.close()
    assert model.pair.unanswered() == 0


def test_a_revoked_device_ends_running_calls() -> None:
    model = QueueModel()
    model.pair.submit(commands.flush(1))
    model.registers.revoke("a test revokes it")
    for use in (lambda: model.pair.submit(commands.flush(1)), lambda: model.pair.poll(1, 10)):
        with pytest.raises(ClosedError, match="BAR0 is closed"):
            use()


# Queues


class PlainDma:
    """Memory that no device reaches; records allocations and closes."""

    def __init__(self) -> None:
        self.made: list[Buffer] = []

    def alloc(self, size: int) -> Buffer:
        self.made.append(plain_memory(size, DATA + (len(self.made) << 24)))
        return self.made[-1]


class Disk:
    """An I/O queue for 100 blocks of 512 bytes, up to 4 blocks in a command, and its controller."""

    def __init__(self) -> None:
        self.blocks = bytearray(100 * 512)
        self.dma = PlainDma()
        self.deleted: list[IoQueue] = []
        self.model = QueueModel(interrupts=True, carry_out=self.carry_out)
        namespace = NamespaceInfo(1, 100, 100, 100, 512, 0)
        self.queue = IoQueue(1, self.model.pair, namespace, 4, cast("Dma", self.dma), self.deleted.append)

    def carry_out(self, command: Command) -> tuple[int, int]:
        if command.opcode == 0:
            return 0, 0
        memory = next(one for one in self.dma.made if one.iova <= command.prp1 < one.iova + one.size)
        at, start = command.prp1 - memory.iova, command.lba * 512
        size = command.blocks * 512
        if command.opcode == READ:
            memory[at : at + size] = self.blocks[start : start + size]
        else:
            self.blocks[start : start + size] = memory[at : at + size]
        return (0x281 if command.lba == 99 else 0), 0


@examples(30)
@given(st.integers(0, 90), st.integers(1, 9))
def test_long_transfers_are_cut_into_commands(lba: int, blocks: int) -> None:
    disk = Disk()
    data = bytes(at % 251 for at in range(blocks * 512))
    with disk.queue as queue:
        queue.write(lba, data)
        assert disk.blocks == bytes(lba * 512) + data + bytes((100 - lba - blocks) * 512)
        assert queue.read(lba, blocks) == data
        buffer = disk.dma.alloc(blocks * 512)
        queue.read_into(lba, buffer)
        assert bytes(buffer) == data
        queue.flush()
    counts = [command.blocks for command in disk.model.seen[:-1]]
    assert sum(counts) == 3 * blocks
    assert max(counts) <= 4
    assert disk.model.seen[-1].opcode == 0


def test_many_reads_and_writes_use_the_buffer_in_turn() -> None:
    disk = Disk()
    pieces = disk.dma.alloc(3 * 1024)
    pieces[:] = b"a" * 1024 + b"b" * 1024 + b"c" * 1024
    with disk.queue as queue:
        queue.write_many([10, 20, 30, 40], pieces, blocks=2)
        assert bytes(disk.blocks[10 * 512 :: 512])[:12:10] == b"ab"
        assert queue.read(30, 2) == b"c" * 1024
        assert queue.read(40, 2) == b"a" * 1024
        queue.read_many(array("Q", [40, 30, 20]), pieces, blocks=2, depth=1)
        assert bytes(pieces) == b"a" * 1024 + b"c" * 1024 + b"b" * 1024
        queue.read_many([], pieces)


def test_submit_and_poll_can_be_called_separately() -> None:
    disk = Disk()
    buffer = disk.dma.alloc(1024)
    cids = [disk.queue.submit_write(7, 1, buffer.iova), disk.queue.submit_read(99, 1, buffer.iova + 512)]
    done = [*disk.queue.poll(1, timeout=10), *disk.queue.poll(1, timeout=10)]
    assert {one.cid: one.status for one in done} == {cids[0]: 0, cids[1]: 0x281}


@pytest.mark.parametrize(
    "use",
    [
        lambda queue, buffer: queue.read(100),
        lambda queue, buffer: queue.read(-1),
        lambda queue, buffer: queue.read(0, 0),
        lambda queue, buffer: queue.read(99, 2),
        lambda queue, buffer: queue.write(0, b"short"),
        lambda queue, buffer: queue.write(0, b""),
        lambda queue, buffer: queue.read_into(97, buffer),
        lambda queue, buffer: queue.read_many([0, 100], buffer),
        lambda queue, buffer: queue.read_many([0, -1], buffer),
        lambda queue, buffer: queue.read_many([0], buffer, blocks=5),
        lambda queue, buffer: queue.read_many([0], buffer, depth=0),
        lambda queue, buffer: queue.write_many([0], buffer, blocks=4),
        lambda queue, buffer: queue.submit_read(0, 5, 0),
        lambda queue, buffer: queue.submit_write(100, 1, 0),
    ],
)
def test_invalid_blocks_are_refused_before_the_controller_sees_them(
    use: Callable[[IoQueue, Buffer], object],
) -> None:
    disk = Disk()
    with pytest.raises(UsageError):
        use(
            disk.queue,
            disk.dma.alloc(1024) if "write_many" in use.__code__.co_names else disk.dma.alloc(2048),
        )
    disk.model.fetch()
    assert disk.model.seen == []


def test_memory_of_a_late_command_is_not_lent_again() -> None:
    disk = Disk()
    disk.model.carry_out = lambda command: None
    with pytest.raises(NvmeTimeoutError):
        disk.queue.read(0, timeout=SHORT)
    disk.model.complete(disk.model.seen[0].cid)
    disk.model.carry_out = disk.carry_out
    disk.queue.read(0)
    disk.queue.read(1)
    with pytest.raises(NvmeStatusError, match="unrecovered read error"):
        disk.queue.read(99)
    disk.queue.read(1)
    late, lent = disk.dma.made
    assert not late.closed
    disk.queue.close()
    assert late.closed
    assert lent.closed
    assert disk.model.memory.closed


def test_a_queue_is_deleted_once_and_unusable_then() -> None:
    disk = Disk()
    disk.queue.close()
    disk.queue.close()
    assert disk.deleted == [disk.queue]
    with pytest.raises(ClosedError):
        disk.queue.read(0)


# Identify data


def identified(**fields: bytes) -> bytes:
    data = bytearray(SIZE)
    for at, value in fields.items():
        data[int(at[2:]) : int(at[2:]) + len(value)] = value
    return bytes(data)


def test_identify_controller_is_parsed_by_figure_275() -> None:
    data = identified(
        at0=b"\x36\x1b\xf4\x1a", at4=b"lab0".ljust(20), at24=b"A model\xff".ljust(40), at64=b"1.0".ljust(8),
        at77=b"\x07", at78=b"\x34\x12", at80=b"\x01\x04\x02\x00", at512=b"\x66\x44", at516=b"\0\1",
        at525=b"\7",
    )  # fmt: skip
    assert ControllerInfo.parse(data) == ControllerInfo(
        0x1B36, 0x1AF4, "lab0", "A model\\xff", "1.0", 0x1234, (2, 4, 1), 7, (0x66, 0x44), 256, True
    )


def test_identify_namespace_uses_the_current_format() -> None:
    formats = b"".join(bytes([at, 0, 9 + at % 4, 0]) for at in range(64))
    data = identified(at0=b"\1\0\0\0\0\0\0\1", at26=b"\x22", at128=formats)
    assert NamespaceInfo.parse(3, data) == NamespaceInfo(3, (1 << 56) + 1, 0, 0, 512 << (18 % 4), 18)


def test_an_inactive_namespace_is_an_error() -> None:
    with pytest.raises(NvmeError, match="namespace 2 is not active"):
        NamespaceInfo.parse(2, bytes(SIZE))


def test_the_list_of_namespaces_must_ascend() -> None:
    assert parse_active(array("I", [3, 9, 0, 1]).tobytes(), 2) == [3, 9]
    for numbers, above in (([3, 3], 0), ([3, 2], 0), ([3], 3)):
        with pytest.raises(NvmeError, match="does not ascend"):
            parse_active(array("I", numbers).tobytes(), above)


@given(
    st.binary(min_size=700, max_size=700).map(lambda data: data.ljust(SIZE, data[:1])), st.integers(0, 2**32)
)
def test_any_identify_data_is_parsed_or_a_named_error(data: bytes, number: int) -> None:
    ControllerInfo.parse(data)
    for parse in (lambda: NamespaceInfo.parse(number, data), lambda: parse_active(data, number)):
        with contextlib.suppress(NvmeError):
            parse()


def test_a_status_says_what_it_means() -> None:
    error = NvmeStatusError("read", 0x4281)
    assert (error.type, error.code, error.text, error.permanent) == (2, 0x81, "unrecovered read error", True)
    assert str(NvmeStatusError("read", 0x37F)) == "read failed: path error 0x7f (type 0x3, code 0x7f)"
    assert isinstance(error, VfioToolError)
