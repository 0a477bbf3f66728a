"""PCI devices and IOMMU groups as the kernel shows them. Read only: nothing in here changes the machine."""
