"""Threads that compile kernels before anything launches them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from ....kernels.gpu.jit import Launch, load

logger = logging.getLogger("rootlet.engine")

_THREADS = 6
"""A third of compiling is Python, which one thread does at a time. More threads get no more done, and whoever
reads weights meanwhile waits for all of them whenever it wants to go on."""


class CompilerClosedError(Exception):
    """Raised where launches are handed over when nobody wants their kernels any more."""


class KernelCompiler:
    """Takes launches and makes their kernels ready on ``device``, each variant once.

    Nothing is compiled before all launches are known: beside threads that compile, the one that finds them
    would hardly get on. What cannot be compiled is left to its first launch, which raises the error where
    somebody sees it. To be used by one thread, which holds ``jit.LOADING`` meanwhile; another may close it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._threads = ThreadPoolExecutor(_THREADS, "rootlet-compile")
        self._launches: dict[Hashable, Launch] = {}
        self._is_closed = False

    def __call__(self, launch: Launch) -> None:
        """Take a launch. Raises CompilerClosedError once closed."""
        if self._is_closed:
            raise CompilerClosedError
        self._launches.setdefault(launch.variant, launch)

    def run(self, task: Callable[[], None]) -> None:
        """Have one of the threads do something else as well; what it raises is told to nobody."""
        self._submit(task)

    def load(self) -> int:
        """Compile all that was taken, then load it: how many variants that are."""
        launches = sorted(self._launches.values(), key=_tile_size, reverse=True)
        compiled = [self._submit(self._compile, launch) for launch in launches]
        with torch.cuda.device(self._device):
            for kernel in [future.result() for future in compiled]:
                if self._is_closed:
                    raise CompilerClosedError
                if kernel is not None:
                    load(kernel)
        return len(compiled)

    def close(self) -> None:
        """End the threads; kernels that none has begun with are dropped."""
        self._is_closed = True
        self._threads.shutdown(cancel_futures=True)

    def _submit(self, task: Callable[..., Any], *args: Any) -> Future[Any]:
        try:
            return self._threads.submit(task, *args)
        except RuntimeError as error:  # closed
            raise CompilerClosedError from error

    def _compile(self, launch: Launch) -> Any:
        if self._is_closed:
            return None
        begun = time.monotonic()
        try:
            with torch.cuda.device(self._device):
                return launch.compile()
        except Exception:
            logger.debug("%r was not compiled ahead", launch.kernel, exc_info=True)
            return None
        finally:
            logger.debug("compiled %r in %.2f s", launch.kernel, time.monotonic() - begun)


def _tile_size(launch: Launch) -> int:
    """Elements that a program holds at once, roughly: the larger, the longer it takes to compile."""
    return math.prod(value for name, value in launch.options.items() if name.startswith("BLOCK"))
