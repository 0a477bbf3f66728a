"""Captures: a machine's files in an archive, for ``--sysroot`` on another machine."""
