"""Devices on a VFIO driver from the start of the machine on."""
