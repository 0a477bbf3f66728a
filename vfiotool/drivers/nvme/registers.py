"""The registers of an NVMe controller (NVM Express Base Specification 2.0, section 3.1.3)."""

from __future__ import annotations

from vfiotool.drivers.register_layout import bit, bits
from vfiotool.drivers.registers import Register, RegisterBlock

_DOORBELLS = 0x1000


class NvmeRegisters(RegisterBlock, width=32):
    """The controller's properties, at the start of BAR0 (figure 35)."""

    cap = Register(
        0x00,
        width=64,
        access="ro",
        fields={
            "mqes": bits(15, 0),  # entries of the largest queue, minus one
            "cqr": bit(16),  # queues must be contiguous
            "to": bits(31, 24),  # longest wait for csts.rdy, in units of 500 ms
            "dstrd": bits(35, 32),  # doorbells are 4 << dstrd bytes apart
            "css": bits(44, 37),  # command sets: bit 0 is NVM's
            "mpsmin": bits(51, 48),  # smallest page: 4096 << mpsmin
        },
    )
    vs = Register(
        0x08, access="ro", fields={"major": bits(31, 16), "minor": bits(15, 8), "tertiary": bits(7, 0)}
    )
    cc = Register(
        0x14,
        fields={
            "en": bit(0),
            "css": bits(6, 4),
            "mps": bits(10, 7),
            "shn": bits(15, 14),  # 1: shut down normally
            "iosqes": bits(19, 16),  # log2 of an entry's size
            "iocqes": bits(23, 20),
        },
    )
    csts = Register(
        0x1C,
        access="ro",
        fields={"rdy": bit(0), "cfs": bit(1), "shst": bits(3, 2)},  # shst 2: shut down
    )
    aqa = Register(0x24, fields={"asqs": bits(11, 0), "acqs": bits(27, 16)})
    asq = Register(0x28, width=64)
    acq = Register(0x30, width=64)


def doorbells(queue: int, dstrd: int) -> tuple[int, int]:
    """Return the offsets of the submission and the completion doorbell of a queue pair.

    Source: NVMe over PCIe Transport Specification 1.0, sections 3.1.2.1 and 3.1.2.2.
    """
    stride = 4 << dstrd
    return _DOORBELLS + 2 * queue * stride, _DOORBELLS + (2 * queue + 1) * stride
