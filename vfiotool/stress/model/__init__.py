"""The life cycle of a group as a pure model: rules, random walks, a diagram, DMA mappings."""
