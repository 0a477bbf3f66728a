"""For tests of what builds on vfiotool: a machine that is only files, and configuration space by hand.

The contract tests of vfiotool hold the fake machine to what real kernels do.
"""

from vfiotool.testing.config_space import config_space
from vfiotool.testing.fake_host import FakeHost

__all__ = ["FakeHost", "config_space"]
