"""What the kernel reports as it happens."""
