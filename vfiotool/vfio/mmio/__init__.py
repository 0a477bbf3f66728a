"""Registers of a device that are mapped into this process."""
