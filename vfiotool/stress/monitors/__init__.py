"""Watching the kernel: a monitor is told what must come, sees what comes, and says what is wrong."""
