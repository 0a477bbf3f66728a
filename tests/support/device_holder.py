"""A process that holds a device, as a user's own program would."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

_HOLD = """
import sys
from vfiotool.vfio import open_device
with open_device(sys.argv[1], iommu="type1v2", honour_requests=False):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held(address: str) -> Iterator[int]:
    """Have a process hold a device for a ``with`` block, and yield its pid."""
    group = os.path.basename(os.readlink(f"/sys/bus/pci/devices/{address}/iommu_group"))
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, address, group],
        cwd="/",  # what is installed, and not the checkout's
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:  # which closes the pipes, so it lets go, and waits for its end
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder.pid
    assert holder.returncode == 0
