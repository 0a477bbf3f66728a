"""Regions of a device: registers by exact width, and configuration space."""
