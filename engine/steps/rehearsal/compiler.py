"""Threads that compile kernels before anything launches them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from ....kernels.gpu.jit import Launch, load

logger = logging.getLogger("rootlet.engine")

_THREADS = 12
"""A third of compiling is Python, which one thread does at a time; more threads would wait for it."""


class CompilerClosedError(Exception):
    """Raised where launches are handed over when nobody wants their kernels any more."""


class KernelCompiler:
    """Takes launches and makes their kernels ready on ``device``, each variant once.

    What cannot be compiled is left to its first launch, which raises the error where somebody sees it. To be
    used by one thread, which holds ``jit.LOADING`` meanwhile; another may close it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._threads = ThreadPoolExecutor(_THREADS, "rootlet-compile")
        self._variants: dict[Hashable, Future[Any]] = {}
        self._is_closed = False

    def __call__(self, launch: Launch) -> None:
        """Have the kernel compiled, unless it is or will be. Raises CompilerClosedError once closed."""
        if self._is_closed:
            raise CompilerClosedError
        variant = launch.variant
        if variant not in self._variants:
            try:
                self._variants[variant] = self._threads.submit(self._compile, launch)
            except RuntimeError as error:  # closed just now
                raise CompilerClosedError from error

    def run(self, task: Callable[[], None]) -> None:
        """Have one of the threads do something else as well; what it raises is told to nobody."""
        self._threads.submit(task)

    def load(self) -> int:
        """Load all that was taken, when it is compiled: how many variants that are."""
        with torch.cuda.device(self._device):
            compiled = [future.result() for future in self._variants.values()]
            for kernel in compiled:
                if self._is_closed:
                    raise CompilerClosedError
                if kernel is not None:
                    load(kernel)
        return len(compiled)

    def close(self) -> None:
        """End the threads; kernels that none has begun with are dropped."""
        self._is_closed = True
        self._threads.shutdown(cancel_futures=True)

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
