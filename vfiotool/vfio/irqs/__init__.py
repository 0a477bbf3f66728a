"""What a device, or the kernel, tells: interrupts, and requests to give the device back."""
