"""Processes that no signal of the terminal ends: who has started them tells them."""

from __future__ import annotations

import os
import signal


def stand_apart() -> None:
    """Have a session of one's own, and take no notice of being told to end."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
