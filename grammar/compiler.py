"""Compilation beside the engine's thread, each constraint once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

from ..errors import EngineClosedError, GrammarError
from .constraint import Constraint
from .interface import Backend, Grammar

_MAX_CACHED = 512
_THREADS = 2

BACKENDS = ("xgrammar", "llguidance")


class GrammarCompiler:
    """Hands out compiled grammars as futures; the least recently wanted are forgotten.

    Threads start with the first constraint and end with :meth:`close`. Any thread may call.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._cache: OrderedDict[Constraint, Future[Grammar]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def compile(self, constraint: Constraint) -> Future[Grammar]:
        """The grammar, or GrammarError: at once if it is known, else when it is compiled."""
        with self._lock:
            if self._closed:
                raise EngineClosedError("The engine was closed.")
            future = self._cache.get(constraint)
            if future is None:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="rootlet-grammar")
                future = self._cache[constraint] = self._pool.submit(self._run, constraint)
                if len(self._cache) > _MAX_CACHED:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(constraint)
            return future

    def _run(self, constraint: Constraint) -> Grammar:
        try:
            return self._backend.compile(constraint)
        except GrammarError:
            raise
        except RecursionError:
            raise GrammarError(f"The {constraint.kind} is nested too deeply.") from None
        except Exception as error:  # a library's own: it concerns requests with this constraint only
            raise GrammarError(f"The {constraint.kind} cannot be compiled: {error!r}") from error

    def clear(self) -> None:
        """Forget what is compiled; requests keep what they have."""
        with self._lock:
            self._cache.clear()

    def close(self) -> None:
        """End the threads; what waits is cancelled, what is being compiled is waited for."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
            self._cache.clear()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
