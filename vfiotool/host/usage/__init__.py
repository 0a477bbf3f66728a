"""How the host uses its PCI devices: interfaces, disks, consoles, open nodes."""
