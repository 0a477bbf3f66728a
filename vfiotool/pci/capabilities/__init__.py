"""What the capabilities of a function say, decoded from the bytes of its configuration space.

Records are frozen, of numbers, texts and tuples of them, so that they can be shown and written as JSON
field by field. ``decoding`` reads them; ``pci.config_space`` walks the chains.
"""
