"""Monitors: each compares what the kernel reports with what the model expects."""
