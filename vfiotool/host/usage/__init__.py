"""What hangs on a PCI device, and why it must not be taken lightly: disks, networks, consoles."""
