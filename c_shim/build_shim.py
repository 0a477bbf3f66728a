"""Build ``vfiotool._shim`` from shim.c by cffi in API mode: one abi3 extension for every Python 3.

The GIL is released around every call, as cffi does for all functions of a library.
"""

from __future__ import annotations

import os
import sysconfig

from cffi import FFI

_HERE = os.path.dirname(os.path.abspath(__file__))
# setuptools wants sources relative to setup.py, the compiler an include path that holds anywhere.
_SOURCE = os.path.join("c_shim", "shim.c")


def declarations() -> str:
    """Return the part of shim.h that cffi can parse: what stands between its two markers."""
    with open(os.path.join(_HERE, "shim.h"), encoding="ascii") as header:
        text = header.read()
    return text.partition("/* declarations */")[2].partition("/* end of declarations */")[0]


ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "vfiotool._shim",
    '#include "shim.h"',
    sources=[_SOURCE],
    include_dirs=[_HERE],
    depends=[os.path.join("c_shim", "shim.h")],
    extra_compile_args=["-Wall", "-Wextra"],
    # A free-threaded Python has no stable ABI to build against.
    py_limited_api=not sysconfig.get_config_var("Py_GIL_DISABLED"),
)
