"""What can be done with a group on stage, by families of operations."""
