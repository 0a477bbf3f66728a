"""The cffi extension; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import sysconfig

from setuptools import setup

# A free-threaded Python has no stable ABI, so its wheel carries its own tag.
abi3 = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=["c_shim/build_shim.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if abi3 else {},
)
