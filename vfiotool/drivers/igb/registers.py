"""The registers of an 82576 that the driver uses, all in BAR0 (Intel 82576EB datasheet, chapter 8)."""

from __future__ import annotations

from vfiotool.drivers.register_layout import bit, bits
from vfiotool.drivers.registers import Nested, Register, RegisterBlock


class QueueRegisters(RegisterBlock, width=32):
    """Registers of receive and transmit queues; their memory starts at a multiple of 128 bytes."""

    base_low = Register(0x00)
    base_high = Register(0x04)
    length = Register(0x08)  # bytes
    head = Register(0x10)
    tail = Register(0x18)
    control = Register(0x28, fields={"enable": bit(25)})  # RXDCTL, TXDCTL


class ReceiveQueueRegisters(QueueRegisters):
    """Registers of a receive queue."""

    buffers = Register(0x0C, fields={"size": bits(6, 0), "kind": bits(27, 25)})  # SRRCTL; size in KiB


class IgbRegisters(RegisterBlock, width=32):
    """Registers of the whole device, by the datasheet's names, and of its queues."""

    ctrl = Register(
        0x0000,
        fields={
            "full_duplex": bit(0),
            "master_disable": bit(2),
            "link_up": bit(6),
            "speed": bits(9, 8),
            "force_speed": bit(11),
            "force_duplex": bit(12),
            "reset": bit(26),
        },
    )
    status = Register(0x0008, access="ro", fields={"link_up": bit(1), "master_enabled": bit(19)})
    mdic = Register(
        0x0020,
        fields={
            "data": bits(15, 0),
            "register": bits(20, 16),
            "phy": bits(25, 21),
            "operation": bits(27, 26),
            "ready": bit(28),
            "error": bit(30),
        },
    )
    rctl = Register(
        0x0100,
        fields={"enable": bit(1), "any_address": bit(3), "long_frames": bit(5), "strip_checksum": bit(26)},
    )
    tctl = Register(0x0400, fields={"enable": bit(1)})
    imc = Register(0x150C, access="wo")
    gpie = Register(0x1514, fields={"multiple_msix": bit(4)})
    eics = Register(0x1520, access="wo")
    eims = Register(0x1524)
    eimc = Register(0x1528, access="wo")
    eiac = Register(0x152C)
    eitr = Register(0x1680, count=25)
    ivar = Register(0x1700, count=8, fields={"receive": bits(7, 0), "transmit": bits(15, 8)})
    receive = Nested(ReceiveQueueRegisters, 0xC000, count=16, stride=0x40)
    transmit = Nested(QueueRegisters, 0xE000, count=16, stride=0x40)
