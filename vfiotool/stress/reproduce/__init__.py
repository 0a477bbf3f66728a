"""Reproduce a finding: replay a trace, minimize it, write it as a script."""
