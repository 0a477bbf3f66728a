"""Change which driver has a device: planned, journalled, verified, and taken back where it fails."""
