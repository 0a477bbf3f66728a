"""A machine put into one file, and looked at elsewhere."""
