"""The checks of ``vfiotool doctor``: each reads a few facts and judges them by a pure function."""
