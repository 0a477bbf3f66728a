"""What PCI is, apart from any machine: addresses, configuration space from bytes, names. No I/O
but the reading of pci.ids."""
