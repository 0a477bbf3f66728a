"""Completions in a shell, compared with lspci: devices that exist, in a form that the shell can use."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support.guest import E1000_PAIR, KERNEL, MACHINE, PROGRAM, output

pytestmark = [
    pytest.mark.needs_guest,
    pytest.mark.skipif((KERNEL, MACHINE) != ("6.12", "default"), reason="no kernel changes what is typed"),
]


def offered(line: str) -> list[str]:
    """Ask as bash's function does, with the breaks that bash has by itself."""
    breaks = " \t\n\"'><=;|&(:"
    asked = {"_VFIOTOOL_COMPLETE": "bash_complete", "COMP_LINE": line, "COMP_WORDBREAKS": breaks}
    answer = subprocess.run(
        [PROGRAM], env=os.environ | asked, capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stderr == ""
    return [one.removeprefix("plain,") for one in answer.stdout.split("\n") if one]


def test_addresses_are_those_that_are_there() -> None:
    lines = [line.split() for line in output("lspci", "-D", "-n").splitlines()]
    bridges = {address for address, kind, *_ in lines if kind == "0604:"}
    assert offered("vfiotool show ") == sorted(address for address, *_ in lines)
    assert offered("vfiotool bind ") == sorted({address for address, *_ in lines} - bridges)


def test_the_rest_of_an_address() -> None:
    """Readline puts it in place of what follows the last colon."""
    prefix = E1000_PAIR[0].rpartition(":")[0] + ":"
    assert offered(f"vfiotool show {prefix}") == [one.removeprefix(prefix) for one in E1000_PAIR]


@pytest.mark.full
def test_interfaces_and_disks_that_are_on_pci() -> None:
    assert "lo" not in offered("vfiotool show l")
    assert {"nvme0", "nvme0n1"} <= set(offered("vfiotool show nvme0"))
