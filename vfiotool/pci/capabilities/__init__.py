"""The fields of capabilities, decoded from the bytes of configuration space.

A decoded capability is a frozen dataclass of numbers, texts and tuples, so that it can be printed and written
as JSON field by field. ``decoding`` decodes; ``pci.config_space`` walks the lists of capabilities.
"""
