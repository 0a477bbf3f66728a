"""Memory for DMA: allocation, IOVAs, and mappings of single buffers and of batches."""
