"""Build ``vfiotool._shim`` from the C files beside it, with cffi in API mode: one abi3 extension.

The GIL is released around every call, as cffi does for all functions of a library.
"""

from __future__ import annotations

import os
import re
import sysconfig

from cffi import FFI

_HERE = os.path.dirname(os.path.abspath(__file__))


def _text(name: str) -> str:
    with open(os.path.join(_HERE, name), encoding="ascii") as file:
        return file.read()


def _parts() -> list[str]:
    """Return the names of the parts: each has a header that shim.h includes, and a C file."""
    return re.findall(r'#include "(\w+)\.h"', _text("shim.h"))


def declarations() -> str:
    """Return the declarations of the headers for cffi: the text between their markers."""
    texts = (_text(f"{part}.h") for part in _parts())
    return "".join(
        text.partition("/* declarations */")[2].partition("/* end of declarations */")[0] for text in texts
    )


ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "vfiotool._shim",
    '#include "shim.h"',
    # setuptools needs sources relative to setup.py, the compiler an absolute include path.
    sources=[os.path.join("c_shim", f"{part}.c") for part in _parts()],
    include_dirs=[_HERE],
    depends=[os.path.join("c_shim", name) for name in sorted(os.listdir(_HERE)) if name.endswith(".h")],
    extra_compile_args=["-Wall", "-Wextra", "-pthread"],
    extra_link_args=["-pthread"],  # pthread is a separate library before glibc 2.34
    # A free-threaded Python has no stable ABI.
    py_limited_api=not sysconfig.get_config_var("Py_GIL_DISABLED"),
)
