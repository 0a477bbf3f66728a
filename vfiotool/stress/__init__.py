"""Proof by stress: what the kernel must do, what it is asked to do, and what watches whether it did."""
