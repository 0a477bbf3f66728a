"""Interrupts of a device, and the kernel's requests to release it."""
