"""Declares the optional C parts; everything else about the package is in pyproject.toml.

The sources in ``kernels/csrc`` are compiled once per instruction set, and ``kernels/native.py``
picks the build for the CPU at hand; ``engine/schedule/csrc`` is compiled once, for its loops do no
arithmetic. All of them are optional: where there is no C compiler, or it does not know a flag, the
package installs without them and runs on torch and Python alone.
"""

from __future__ import annotations

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = sorted(str(path) for path in Path("kernels/csrc").glob("*.c"))
HEADERS = sorted(str(path) for path in Path("kernels/csrc").glob("*.h"))

# no -ffast-math: masks rely on the order of sums, kernels vectorise explicitly
FLAGS = ["-O3", "-std=gnu11", "-pthread", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-ffp-contract=fast", "-Wall", "-g0"]
# the levels x86-64-v3 and x86-64-v4, spelled out for compilers older than their names
V3 = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mmovbe"]
V4 = [*V3, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]


class BuildOnePerFolder(build_ext):
    """Keeps the object files of each extension apart, since all are compiled from the same sources."""

    def build_extension(self, ext: Extension) -> None:
        """Build ext below a folder of its own name."""
        shared = self.build_temp
        self.build_temp = str(Path(shared) / ext.name)
        try:
            super().build_extension(ext)
        finally:
            self.build_temp = shared


def extension(name: str, flags: list[str]) -> Extension:
    """Describe one build of the C kernels."""
    return Extension(
        f"rootlet.kernels.{name}",
        sources=SOURCES,
        depends=HEADERS,
        define_macros=[("ROOTLET_MODULE", name)],
        extra_compile_args=[*FLAGS, *flags],
        extra_link_args=["-pthread"],
        libraries=["m"],
        optional=True,
    )


extensions = [extension("_cpu_base", [])]
if platform.machine().lower() in ("x86_64", "amd64"):
    extensions += [extension("_cpu_v3", V3), extension("_cpu_v4", V4)]

extensions.append(
    Extension(
        "rootlet.engine.schedule._rows",
        sources=["engine/schedule/csrc/rows.c"],
        extra_compile_args=["-O3", "-std=gnu11", "-fvisibility=hidden", "-Wall", "-g0"],
        optional=True,
    )
)

# script_name: the root is the package, and setuptools would take this file for a module of it
setup(script_name="setup.py", ext_modules=extensions, cmdclass={"build_ext": BuildOnePerFolder})
