"""What a device shows of itself: registers by exact width, mapped or not, and configuration space."""
