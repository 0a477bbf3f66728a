"""Each kind of step, as text and as path and value; both are a contract with users and with old logs."""

from __future__ import annotations

import pytest

from tests.unit.conftest import Run
from vfiotool.binding.ownership import Owner
from vfiotool.binding.steps import (
    BindDriver,
    GrantOwner,
    LoadModule,
    SetAttribute,
    SetNodeAccess,
    SetOverride,
    SetVfCount,
    Step,
    SysfsWrite,
    UnbindDriver,
    WriteRule,
)
from vfiotool.host.device_state import NodeAccess
from vfiotool.testing import FakeHost

A = "0000:00:12.0"
DEVICE = f"/sys/bus/pci/devices/{A}"
OWNER_RULE = f"/run/udev/rules.d/90-vfiotool-owner-{A}.rules"


@pytest.mark.parametrize(
    ("step", "path", "value", "text"),
    [
        (LoadModule(A, "vfio-pci"), "modprobe", "vfio-pci", "modprobe vfio-pci"),
        (
            SetOverride(A, "vfio-pci"),
            f"{DEVICE}/driver_override",
            "vfio-pci",
            f"write 'vfio-pci' to {DEVICE}/driver_override",
        ),
        (
            SetOverride(A, None),
            f"{DEVICE}/driver_override",
            "\n",
            rf"write '\n' to {DEVICE}/driver_override",
        ),
        (
            BindDriver(A, "vfio-pci"),
            "/sys/bus/pci/drivers/vfio-pci/bind",
            A,
            f"write '{A}' to /sys/bus/pci/drivers/vfio-pci/bind",
        ),
        (
            UnbindDriver(A, "e1000e"),
            "/sys/bus/pci/drivers/e1000e/unbind",
            A,
            f"write '{A}' to /sys/bus/pci/drivers/e1000e/unbind",
        ),
        (SetVfCount(A, 2), f"{DEVICE}/sriov_numvfs", "2", f"write '2' to {DEVICE}/sriov_numvfs"),
        (
            SetAttribute(A, "power/control", "auto"),
            f"{DEVICE}/power/control",
            "auto",
            f"write 'auto' to {DEVICE}/power/control",
        ),
        (
            SetNodeAccess(A, "/dev/vfio/7", NodeAccess(1000, 1001, 0o660)),
            "/dev/vfio/7",
            "1000:1001 0660",
            "give /dev/vfio/7 to 1000:1001 0660",
        ),
        (GrantOwner(A, Owner(1000)), OWNER_RULE, "1000", f"give its nodes to 1000 by {OWNER_RULE}"),
        (
            GrantOwner(A, Owner(1000, 1001)),
            OWNER_RULE,
            "1000:1001",
            f"give its nodes to 1000:1001 by {OWNER_RULE}",
        ),
        (WriteRule(A, "/etc/x.rules", "a\nb"), "/etc/x.rules", "a\nb", r"write 'a\nb' to /etc/x.rules"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_step_has_path_value_and_text(step: Step | WriteRule, path: str, value: str, text: str) -> None:
    assert (step.path, step.value, str(step)) == (path, value, text)
    assert step.address == A


@pytest.mark.parametrize(
    ("step", "events"),
    [
        (SetOverride(A, None), ()),
        (SetAttribute(A, "power/control", "on"), ()),
        (BindDriver(A, "vfio-pci"), (("bind", A),)),
        (UnbindDriver(A, "vfio-pci"), (("unbind", A),)),
        (SetVfCount(A, 1, (("add", "0000:00:12.1"),)), (("add", "0000:00:12.1"),)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sysfs_write_knows_its_uevents(step: SysfsWrite, events: tuple[tuple[str, str], ...]) -> None:
    assert step.events == events


def test_steps_are_equal_by_kind_and_content() -> None:
    steps: set[Step] = {BindDriver(A, "vfio-pci"), BindDriver(A, "vfio-pci"), UnbindDriver(A, "vfio-pci")}
    assert len(steps) == 2


def test_bind_json_lists_steps_by_path_and_value(vfiotool: Run, host: FakeHost) -> None:
    host.add_driver("vfio-pci", module_loaded=False)
    host.add_device(A, vendor=0x8086, device=0x10D3, driver="e1000e", group=7)
    document = vfiotool("bind", A, "--owner", "0:0", "--json").document
    assert document["steps"] == [
        {"path": "modprobe", "value": "vfio-pci"},
        {"path": f"{DEVICE}/driver_override", "value": "vfio-pci"},
        {"path": "/sys/bus/pci/drivers/e1000e/unbind", "value": A},
        {"path": "/sys/bus/pci/drivers/vfio-pci/bind", "value": A},
        {"path": OWNER_RULE, "value": "0:0"},
    ]
