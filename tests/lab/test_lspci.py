"""``vfiotool config --json`` of every device beside ``lspci -vvv``, field by field, on live devices."""

from __future__ import annotations

import os

import pytest

from tests.support import lspci, lspci_text
from tests.support.guest import MACHINE, SUBSYSTEM_NVME, await_, done, listing, path, write
from tests.support.lspci_check import compare_device
from tests.support.lspci_comparison import Comparison

pytestmark = pytest.mark.needs_guest

_LOOKS = 3
"""A register may change between the look of lspci and that of vfiotool, but not each time."""
_VF = "0000:01:00.1"


def test_config_agrees_with_lspci() -> None:
    agrees_with_lspci()


@pytest.mark.skipif(MACHINE == "amd", reason="machine 'amd' has no NVMe in a subsystem")
def test_config_of_a_vf_agrees_with_lspci() -> None:
    """Its ids read as ones, and its BARs as zeros."""
    numvfs, autoprobe = path(SUBSYSTEM_NVME, "sriov_numvfs"), path(SUBSYSTEM_NVME, "sriov_drivers_autoprobe")
    write(autoprobe, "0")
    try:
        write(numvfs, "1")
        await_("the VF is there", lambda: os.path.exists(path(_VF)))
        agrees_with_lspci()
    finally:
        write(numvfs, "0")
        write(autoprobe, "1")
    await_("the VF is gone", lambda: not os.path.exists(path(_VF)))


def agrees_with_lspci() -> None:
    """Compare all devices, and again if there is a problem."""
    addresses = list(listing())
    comparison = look(addresses)
    for _ in range(_LOOKS - 1):
        if not comparison.problems:
            break
        comparison = look(addresses)
    assert not comparison.problems, comparison.report()
    # Less than that is no comparison: lspci could not read configuration space, or printed another form.
    assert len(comparison.compared) > len(addresses)


def look(addresses: list[str]) -> Comparison:
    """Compare what lspci says of the devices with what vfiotool says of them right after."""
    said = lspci_text.parse(lspci.lspci("-D", "-vvv"))
    assert said.keys() == set(addresses)
    comparison = Comparison()
    for address in addresses:
        compare_device(comparison, said[address], done("config", address)["value"], is_live=True)
    return comparison
