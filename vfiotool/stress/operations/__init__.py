"""The operations that a run can execute on a group, by families."""
