"""One IOMMU group under test: its state, and the processes that hold its file descriptors."""
