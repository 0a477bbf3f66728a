"""Random 4K reads of an NVMe disk by this driver, and by the kernel's with io_uring, in turns."""

from __future__ import annotations

import array
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import vfiotool
from vfiotool.drivers.nvme import IoQueue, Nvme
from vfiotool.vfio.device import open_device
from vfiotool.vfio.dma.dma import Dma

ADDRESS = "0000:00:13.0"
DEPTHS = (1, 32)
GOAL, GOAL_DEPTH = 1.1, 32
ROUNDS = 5
SECONDS = 2.0
SIZE = 4096
_AT_ONCE = 256  # reads per call to C, for each read in flight
_APPEARS = 30.0


def measure(address: str, depth: int, seconds: float) -> float:
    """Return how many reads a second this driver makes, of a disk on vfio-pci."""
    with open_device(address) as device, Nvme(device) as nvme, nvme.create_queue() as queue:
        return reads_a_second(queue, device.dma, depth, seconds)


def reads_a_second(queue: IoQueue, dma: Dma, depth: int, seconds: float) -> float:
    """Read for a time, each read into a separate piece of memory."""
    blocks = SIZE // queue.namespace.block_size
    pages = queue.namespace.blocks // blocks
    lbas = array.array("Q", (random.randrange(pages) * blocks for _ in range(depth * _AT_ONCE)))  # noqa: S311
    with dma.alloc(2 * depth * SIZE) as buffer:
        done, begun = 0, time.monotonic()
        while (now := time.monotonic()) < begun + seconds:
            queue.read_many(lbas, buffer, blocks=blocks, depth=depth)
            done += len(lbas)
        return done / (now - begun)


def measure_kernel(program: str, address: str, depth: int, seconds: float) -> float:
    """Return how many reads a second the kernel's driver makes, of the same disk on nvme."""
    argv = [program, f"/dev/{disk_of(address)}", str(depth), str(seconds)]
    return float(subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout)


def disk_of(address: str) -> str:
    """Return the disk of a controller, which appears some time after its driver."""
    deadline = time.monotonic() + _APPEARS
    while True:
        for controller in Path(f"/sys/bus/pci/devices/{address}/nvme").glob("nvme*"):
            disk = f"{controller.name}n1"
            if os.path.exists(f"/dev/{disk}"):
                return disk
        if time.monotonic() > deadline:
            raise FileNotFoundError(f"{address} has no disk")
        time.sleep(0.01)


def build(folder: str) -> str:
    """Build the program that reads with io_uring."""
    program = f"{folder}/uring_reads"
    source = Path(__file__).with_name("uring_reads.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-o", program, source], check=True)
    return program


def compare(address: str) -> dict[int, tuple[float, float, float]]:
    """Return for each depth the medians of ours, of theirs, and of the ratios of the rounds."""
    rounds: dict[int, list[tuple[float, float]]] = {depth: [] for depth in DEPTHS}
    with tempfile.TemporaryDirectory() as folder:
        program = build(folder)
        for _ in range(ROUNDS):
            theirs = [measure_kernel(program, address, depth, SECONDS) for depth in DEPTHS]
            with vfiotool.bound(address):
                ours = [measure(address, depth, SECONDS) for depth in DEPTHS]
            for depth, mine, other in zip(DEPTHS, ours, theirs, strict=True):
                rounds[depth].append((mine, other))
    return {
        depth: (
            statistics.median(mine for mine, _ in pairs),
            statistics.median(other for _, other in pairs),
            statistics.median(mine / other for mine, other in pairs),
        )
        for depth, pairs in rounds.items()
    }


def main() -> int:
    """Print both; return 1 if the goal is missed."""
    print(f"Linux {platform.release()}, {os.cpu_count()} processors: random 4K reads a second of {ADDRESS}")
    missed = False
    for depth, (ours, theirs, ratio) in compare(ADDRESS).items():
        goal = f", goal at least {GOAL:g}" if depth == GOAL_DEPTH else ""
        missed |= depth == GOAL_DEPTH and ratio < GOAL
        print(
            f"depth {depth:2}: {ours:7,.0f}, the kernel by io_uring {theirs:7,.0f}: {ratio:.2f} times{goal}"
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
