"""doctor on a real kernel, compared with the kernel's log, modprobe and prlimit."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

from tests.support.guest import (
    BUS,
    E1000_PAIR,
    EDU,
    GROUPS,
    MACHINE,
    RELEASE,
    as_before,
    command,
    group,
    needs_iommu,
    output,
    path,
    vfiotool,
    vfiotool_as_nobody,
    write,
)

pytestmark = pytest.mark.needs_guest

Checks = dict[str, dict[str, Any]]
_REMAPPING = re.compile(r"DMAR-IR: Enabled IRQ remapping|AMD-Vi: Interrupt remapping enabled")


def examined() -> Checks:
    """Run doctor, check its exit status, and return its checks by name."""
    result = vfiotool("doctor", "--json")
    checks = result.document["checks"]
    assert result.status == int(any(check["ok"] is False for check in checks))
    return {check["name"]: check for check in checks}


def bind_to_vfio_pci(address: str) -> None:
    write(path(address, "driver_override"), "vfio-pci")
    if os.path.exists(path(address, "driver")):
        write(path(address, "driver/unbind"), address)
    write(f"{BUS}/drivers/vfio-pci/bind", address)


def test_the_iommu_and_remapping_agree_with_the_kernels_log() -> None:
    checks, log = examined(), output("dmesg", "--notime")
    joined = {line.rpartition(" ")[2] for line in log.splitlines() if "Adding to iommu group" in line}
    assert joined >= set(os.listdir(GROUPS))  # a group disappears with its devices
    assert checks["iommu"]["ok"] is bool(joined)
    assert checks["interrupt-remapping"]["ok"] is (_REMAPPING.search(log) is not None)
    assert checks["interrupt-remapping"]["ok"] is (MACHINE in ("default", "amd"))
    if MACHINE == "none":
        assert "-device intel-iommu" in checks["iommu"]["remedy"]
    if MACHINE == "virtio-iommu":
        assert "allow_unsafe_interrupts=1" in checks["interrupt-remapping"]["remedy"]


def test_the_modules_agree_with_modprobe() -> None:
    """The lab's kernels have VFIO as modules."""
    found = [command("modprobe", "--show-depends", name).status for name in ("vfio-pci", "vfio_iommu_type1")]
    check = examined()["modules"]
    assert check["ok"] is (found == [0, 0])
    output("modprobe", "vfio-pci")
    assert "vfio_pci: loaded" in examined()["modules"]["detail"]


def test_the_kernels_era() -> None:
    check = examined()["kernel"]
    assert os.uname().release in check["detail"]
    assert check["ok"] is (RELEASE >= (5, 19))
    assert ("kernel BUG" in check["detail"]) is (RELEASE < (5, 19))


def test_lockdown_agrees_with_the_kernel() -> None:
    assert examined()["lockdown"]["ok"] is None
    output("sh", "-c", examined()["lockdown"]["remedy"])
    try:
        assert (examined()["lockdown"]["ok"], examined()["lockdown"]["detail"]) == (True, "off")
    finally:
        output("umount", "/sys/kernel/security")


def test_an_unprivileged_user_gets_the_same_checks_except_memlock() -> None:
    root = examined()
    seen = vfiotool_as_nobody("doctor", "--json")
    nobody = {check["name"]: check for check in seen.document["checks"]}
    limit = int(output("setpriv", "--reuid=nobody", "prlimit", "--memlock", "--output=SOFT", "--noheadings"))
    assert f"may pin {limit >> 20} MiB of" in nobody["memlock"]["detail"]
    assert (nobody["memlock"]["ok"], seen.status) == (False, 1)
    assert "echo 'nobody - memlock unlimited'" in nobody["memlock"]["remedy"]
    assert root["memlock"]["ok"] is True
    leftovers = {check: one for check, one in root.items() if check not in ("memlock", "leftovers")}
    assert {check: nobody[check] for check in leftovers} == leftovers


def test_hugepages_are_counted() -> None:
    pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    write(pool, "3")
    try:
        assert "3 of 2048kB reserved, 3 free" in examined()["hugepages"]["detail"]
    finally:
        write(pool, "0")


@pytest.mark.full
@needs_iommu
def test_the_remedy_for_a_node_open_to_all_users_works() -> None:
    output("modprobe", "vfio-pci")
    with as_before(EDU):
        bind_to_vfio_pci(EDU)
        node = f"/dev/vfio/{group(EDU)}"
        assert examined()["nodes"]["ok"] is True
        os.chmod(node, 0o606)  # noqa: S103 - the check must find this mode
        check = examined()["nodes"]
        assert (check["ok"], node in check["detail"]) == (False, True)
        output("sh", "-c", check["remedy"])
        assert os.stat(node).st_mode & 0o777 == 0o600
        assert examined()["nodes"]["ok"] is True


@pytest.mark.full
@needs_iommu
@pytest.mark.skipif(MACHINE == "virtio-iommu", reason="machine 'virtio-iommu' has no group of several")
def test_a_group_partly_on_vfio_pci_is_found() -> None:
    output("modprobe", "vfio-pci")
    first, second = E1000_PAIR
    with as_before(first):
        bind_to_vfio_pci(first)
        check = examined()["viability"]
        assert (check["ok"], check["remedy"]) == (False, f"vfiotool bind --group group:{group(first)}")
        assert second in check["detail"]
    assert examined()["viability"]["ok"] is True
