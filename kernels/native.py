"""Finds the C extension built for this CPU (``_cpu_v4``, ``_cpu_v3`` or ``_cpu_base``).

The same sources (``csrc/``) are compiled once per instruction set by ``setup.py``; which build to
use is decided here, when the first kernel module is imported. A machine without a compiler has
none of them, and every operation then runs its torch reference.
"""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType

import torch

logger = logging.getLogger("rootlet.kernels")

# CPU capability as torch reports it -> builds it can run, best first
_BUILDS = {
    "AVX512": ("_cpu_v4", "_cpu_v3", "_cpu_base"),
    "AVX2": ("_cpu_v3", "_cpu_base"),
}
_LABELS = {"_cpu_v4": "c-avx512", "_cpu_v3": "c-avx2", "_cpu_base": "c-generic"}

# element types the C kernels know, by the numbers of csrc/vector.h
ELEMENT_TYPES = {torch.float32: 0, torch.bfloat16: 1}


@functools.cache
def load() -> ModuleType | None:
    """Return the best C extension this CPU can run, or None when none was built.

    The choice follows ``torch.backends.cpu.get_cpu_capability()``. Never raises: an extension that
    cannot be loaded is logged and the next one is tried.
    """
    for name in _BUILDS.get(torch.backends.cpu.get_cpu_capability(), ("_cpu_base",)):
        try:
            return importlib.import_module(f".{name}", __package__)
        except ModuleNotFoundError:
            logger.debug("The C kernels %s were not built.", name)
        except ImportError as error:
            logger.warning("The C kernels %s cannot be loaded: %s", name, error)
    return None


def describe() -> str:
    """Name the kernels in use: ``c-avx512``, ``c-avx2``, ``c-generic``, or ``torch`` without extension."""
    module = load()
    return "torch" if module is None else _LABELS[module.__name__.rpartition(".")[2]]


def element_type(*tensors: torch.Tensor) -> int | None:
    """Return the number of the dtype the tensors share, or None where the C kernels do not apply.

    They apply to CPU tensors that are all fp32 or all bf16; for anything else the caller runs its
    torch reference.
    """
    dtype = tensors[0].dtype
    for tensor in tensors:
        if tensor.dtype is not dtype or not tensor.is_cpu:
            return None
    return ELEMENT_TYPES.get(dtype)
