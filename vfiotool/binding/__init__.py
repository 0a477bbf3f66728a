"""Bind devices to drivers: each change is planned, recorded, verified, and rolled back if it fails."""
