"""What an EPERM or EINVAL of attaching to an IO address space is explained by, and what no text advises."""

from __future__ import annotations

import ast
import errno
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vfiotool as package
from vfiotool.errors import GroupNotViableError, KernelError, explain
from vfiotool.events.entry import TimelineEntry
from vfiotool.events.kmsg import KernelLog, parse_record
from vfiotool.host.direct_regions import OTHER_FIRMWARE
from vfiotool.testing import FakeHost
from vfiotool.vfio.iommu import attach_errors
from vfiotool.vfio.iommu.attach_errors import (
    HOW_TO_REMAP,
    NO_REMAPPING,
    AttachFacts,
    explain_attach,
    explained,
    logged_refusal,
    read_facts,
)

NIC, EDU = "0000:04:00.0", "0000:00:10.0"
RMRR = "0x000000007d600000 0x000000007d6fffff direct"
UNMAPPED_INTERRUPTS = "  0:  1  IO-APIC  2-edge  timer\n"
OLD = (
    f"vfio-pci {NIC}: Device is ineligible for IOMMU domain attach due to platform RMRR requirement.  "
    "Contact your platform vendor."
)
NEW = (
    f"vfio-pci {NIC}: Firmware has requested this device have a 1:1 IOMMU mapping, rejecting configuring the "
    "device without a 1:1 mapping. Contact your platform vendor."
)

DIRECT = "the firmware needs 0x7d600000 to 0x7d6fffff mapped 1:1"


@pytest.mark.parametrize(
    ("facts", "code", "cause", "remedy"),
    [
        (AttachFacts(DIRECT, False, OLD), errno.EPERM, OLD, OTHER_FIRMWARE),
        (AttachFacts("", True, NEW), errno.EINVAL, NEW, OTHER_FIRMWARE),
        (AttachFacts(DIRECT, False, ""), errno.EPERM, DIRECT, OTHER_FIRMWARE),
        (AttachFacts(DIRECT, False, ""), errno.EINVAL, DIRECT, OTHER_FIRMWARE),
        (AttachFacts(DIRECT, True, ""), errno.EPERM, NO_REMAPPING, OTHER_FIRMWARE),
        (AttachFacts(DIRECT, True, ""), errno.EINVAL, DIRECT, OTHER_FIRMWARE),
        (AttachFacts("", True, ""), errno.EPERM, NO_REMAPPING, HOW_TO_REMAP),
    ],
)
def test_a_refusal_is_explained_by_log_regions_and_interrupts(
    facts: AttachFacts, code: int, cause: str, remedy: str
) -> None:
    explained_by = explain_attach(facts, code)
    assert explained_by is not None
    assert (cause in explained_by[0], explained_by[1]) == (True, remedy)
    assert facts.direct in explained_by[0]


@given(
    facts=st.builds(
        AttachFacts, st.sampled_from(["", DIRECT]), st.booleans(), st.sampled_from(["", OLD, NEW])
    ),
    code=st.sampled_from([errno.EPERM, errno.EINVAL]),
)
def test_interrupts_are_never_blamed_or_to_be_changed_without_cause(facts: AttachFacts, code: int) -> None:
    known = explain_attach(facts, code)
    says = "" if known is None else " ".join(known)
    assert "unsafe" not in says
    if not facts.unsafe or code == errno.EINVAL or facts.logged:
        assert "interrupts" not in says
    if facts.direct:
        assert DIRECT in says
    if facts.direct or facts.logged:
        assert known is not None


@pytest.mark.parametrize("module", [None, "vfio_iommu_type1", "iommufd"])
def test_the_facts_of_a_machine(host: FakeHost, module: str | None) -> None:
    host.add_device(NIC, group=7)
    host.add_group(7, reserved_regions=RMRR)
    host.put("/proc/interrupts", UNMAPPED_INTERRUPTS)
    if module is not None:
        host.put(f"/sys/module/{module}/parameters/allow_unsafe_interrupts", "Y")
    facts = read_facts(7, host.tree)
    assert (DIRECT in facts.direct, facts.unsafe) == (True, module is None)
    assert read_facts(99, host.tree).direct == "", "the group went away meanwhile"


def log(*lines: str) -> list[TimelineEntry]:
    records = [parse_record(f"4,{number},{number},-;{line}\n", 0.0) for number, line in enumerate(lines)]
    return [record for record in records if record is not None]


def test_the_log_counts_for_a_device_of_the_group_alone() -> None:
    lines = log(f"vfio-pci {NIC}: resetting", OLD, NEW, "DMAR: RMRR requirement of nobody", "\x1b[2J")
    assert logged_refusal(lines, [EDU, NIC]) == NEW
    assert logged_refusal(lines[:2], [NIC]) == OLD
    assert logged_refusal(lines, [EDU]) == logged_refusal(lines[:1], [NIC]) == ""


def test_a_log_is_read_from_its_start_on_request(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_text(f"4,1,1,-;{OLD}\n")
    found = []
    for whole in (True, False):
        source = KernelLog(path=str(path), whole=whole)
        found.append([entry.detail for entry in source.read()])
        source.close()
    assert found == [[OLD], []]


@pytest.fixture
def rmrr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every group of this machine have an RMRR."""
    monkeypatch.setattr(attach_errors, "read_facts", lambda group: AttachFacts(DIRECT, False, ""))


@pytest.mark.usefixtures("rmrr")
@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL])
def test_an_explained_error_keeps_what_failed(code: int) -> None:
    with pytest.raises(KernelError) as caught, explained(7):
        raise KernelError(code, "VFIO_SET_IOMMU", "/dev/vfio/vfio")
    error = caught.value
    assert (error.errno, error.operation, error.subject) == (code, "VFIO_SET_IOMMU", "/dev/vfio/vfio")
    assert str(error).startswith(f"VFIO_SET_IOMMU on /dev/vfio/vfio failed: {DIRECT} (E")
    assert error.hint == OTHER_FIRMWARE


@pytest.mark.usefixtures("rmrr")
@pytest.mark.parametrize(
    "error", [KernelError(errno.EBUSY, "open", "group 7"), GroupNotViableError("no", blockers=[])]
)
def test_other_errors_stay_as_they_are(error: KernelError) -> None:
    with pytest.raises(type(error)) as caught, explained(7):
        raise error
    assert caught.value is error


@pytest.mark.usefixtures("rmrr")
def test_the_error_of_a_device_that_has_gone_stays_as_it_is() -> None:
    error = KernelError(errno.EINVAL, "VFIO_DEVICE_BIND_IOMMUFD", NIC)
    with pytest.raises(KernelError) as caught, explained(None):
        raise error
    assert caught.value is error


# What weakens isolation, in a text that a user reads, and what such a text must say of the cost.
WEAKENS = re.compile(
    r"allow_unsafe_interrupts=1|iommu='noiommu'|echo 1 > \S*noiommu|acs_override|disable_denylist=1"
)
COST = re.compile(r"forge|raise any interrupt|reaches all memory|hang the machine|accepts that")


def _texts(tree: ast.AST) -> Iterator[str]:
    """Yield the strings of a module, each with the other strings of its statement."""
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Assign | ast.Return | ast.Raise | ast.Expr | ast.AugAssign):
            yield " ".join(
                node.value
                for node in ast.walk(statement)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            )


def test_no_text_advises_to_weaken_isolation_without_its_cost() -> None:
    sources = Path(package.__file__).parent.rglob("*.py")
    texts = [(path.name, text) for path in sources for text in _texts(ast.parse(path.read_text()))]
    for page in (Path(package.__file__).parents[1] / "docs").glob("*.md"):
        texts += [(page.name, paragraph) for paragraph in page.read_text().split("\n\n")]
    found = {(name, text) for name, text in texts if WEAKENS.search(text)}
    assert {name for name, _ in found} >= {"iommu.py", "type1.py", "nodes.py", "denylist.py"}
    assert [(name, text) for name, text in found if not COST.search(text)] == []


@pytest.mark.parametrize("operation", ["VFIO_SET_IOMMU", "VFIO_DEVICE_ATTACH_IOMMUFD_PT"])
def test_an_eperm_without_further_facts_names_both_causes(operation: str) -> None:
    cause, remedy = explain(operation, errno.EPERM)
    assert "interrupts" in cause
    assert "direct" in cause
    assert "unsafe" not in remedy
