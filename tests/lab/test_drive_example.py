"""The dozen lines that drive a device, as a script of their own; and what they leave where they fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.address_spaces import OFFERED
from tests.support.guest import EDU, driver, kernel_complaints, path

pytestmark = pytest.mark.needs_guest

EXAMPLE = '''
import vfiotool
from vfiotool import Register, RegisterBlock, bit

class Edu(RegisterBlock, width=32):
    """QEMU edu BAR0 (QEMU docs/specs/edu)."""
    ident      = Register(0x00, access="ro")
    irq_status = Register(0x24, access="ro")
    irq_ack    = Register(0x64, access="wo")
    dma_src    = Register(0x80, width=64)
    dma_dst    = Register(0x88, width=64)
    dma_count  = Register(0x90, width=64)
    dma_cmd    = Register(0x98, width=64, fields={"start": bit(0), "to_ram": bit(1), "irq": bit(2)})

with (
    vfiotool.bound("0000:00:10.0", driver="vfio-pci"),
    vfiotool.open_device("0000:00:10.0", iommu="auto") as dev,
    dev.regions.bar0.map() as bar0,
    dev.dma.alloc(4096, iova_max=(1 << 28) - 1) as buf,
    dev.irqs.msi.enable(1) as (vector,),
):
    dev.bus_master = True
    regs = Edu(bar0)
    buf[:4] = b"ping"
    regs.dma_src.write(buf.iova); regs.dma_dst.write(0x40000); regs.dma_count.write(4)
    regs.dma_cmd.write(start=1, irq=1)
    vector.wait(timeout=10.0)
    regs.irq_ack.write(regs.irq_status.read())
'''

BACK = """
    regs.dma_src.write(0x40000); regs.dma_dst.write(buf.iova + 100); regs.dma_count.write(4)
    regs.dma_cmd.write(start=1, irq=1, to_ram=1)
    assert vector.wait(timeout=10.0) == 1
    regs.irq_ack.write(regs.irq_status.read())
    print(hex(regs.ident.read()), buf[:100].rstrip(b"\\0"), buf[100:104], dev.dma.iommu.mode.value)
"""


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, in which what is not closed is an error."""
    file = folder / "drive.py"
    file.write_text(script, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-W", "error", file],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def state() -> tuple[object, ...]:
    """Return what the example must leave unchanged: edu's driver, override and bus mastering."""
    command = Path(path(EDU, "config")).read_bytes()[4]
    return driver(EDU), Path(path(EDU, "driver_override")).read_text(), command & 4, kernel_complaints()


def test_the_example_drives_the_device_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    before = state()
    ended = run(EXAMPLE + BACK, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == ["0x10000ed", "b'ping'", "b'ping'", OFFERED[-1].value]
    assert state() == before


@pytest.mark.full
def test_where_the_example_fails_it_says_why_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = state()
    silent = EXAMPLE.replace("start=1, irq=1)", "start=1)").replace("timeout=10.0", "timeout=0.5")
    ended = run(silent, tmp_path)
    assert ended.returncode == 1
    assert "IrqTimeoutError: MSI 0 of 0000:00:10.0 was not signalled within 0.5 s" in ended.stderr
    assert state() == before
