"""PCI without a machine: addresses, decoding of configuration space from bytes, names. The only I/O is the
reading of pci.ids."""
