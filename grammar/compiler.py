"""Compilation beside the engine's thread, each constraint once, none at the cost of the others."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ..errors import EngineClosedError, GrammarError
from .budget import DEFAULT_SECONDS, Budget
from .constraint import Constraint
from .interface import Backend, Grammar

MAX_CACHED_BYTES = 128 << 20
_ENTRY_BYTES = 2_000  # what is kept of any constraint, beside its text and its grammar
_THREADS = 16  # constraints that are begun and not finished
_AT_ONCE = 2  # of those, who works
_YOUNG = 0.05  # CPU seconds: up to here a compilation yields less

BACKENDS = ("xgrammar", "llguidance")


class Compilation(Future[Grammar]):
    """A grammar that is compiled or being compiled, and how many requests want it.

    Ends with GrammarError if the constraint is refused. Read it by ``exception()`` first: a cached error that
    is raised again and again would collect the frames of everybody who raised it.
    """

    def __init__(
        self, constraint: Constraint, budget: Budget, release: Callable[[Compilation], None]
    ) -> None:
        super().__init__()
        self._release = release
        self.constraint = constraint
        self.budget = budget
        self.num_waiting = 0
        self.size = 0

    def release(self) -> None:
        """One request fewer waits: what nobody waits for is not compiled to the end."""
        self._release(self)


class GrammarCompiler:
    """Hands out compiled grammars; the least recently wanted are forgotten, by what they take.

    Threads start with the first constraint and end with :meth:`close`. Any thread may call.

    Args:
        backend: compiles.
        seconds: the :class:`Budget` of each constraint.
        max_bytes: what compiled grammars may take in all, about; those of running requests are kept by these.
        is_busy: whether the engine has other work, beside which compiling goes slowly.
    """

    def __init__(
        self,
        backend: Backend,
        seconds: float = DEFAULT_SECONDS,
        max_bytes: int = MAX_CACHED_BYTES,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self.is_busy = is_busy
        self._backend = backend
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._cache: OrderedDict[Constraint, Compilation] = OrderedDict()
        self._size = 0
        self._turns = _Turns(_AT_ONCE)
        self._pool: ThreadPoolExecutor | None = None
        self._pending: set[Compilation] = set()
        self._closed = False

    def compile(self, constraint: Constraint) -> Compilation:
        """The grammar, or GrammarError: at once if it is known, else when it is compiled.

        Who stops waiting before calls its ``release``.
        """
        with self._lock:
            if self._closed:
                raise EngineClosedError("The engine was closed.")
            found = self._cache.get(constraint)
            if found is None:
                found = self._begin(constraint)
            self._cache.move_to_end(constraint)
            found.num_waiting += 1
            return found

    def _let_go(self, compilation: Compilation) -> None:
        with self._lock:
            compilation.num_waiting -= 1
            if compilation.num_waiting > 0 or compilation.done():
                return
            if self._cache.get(compilation.constraint) is compilation:
                del self._cache[compilation.constraint]
        self._cancel(compilation)

    @property
    def size(self) -> int:
        """Bytes that the cached grammars take, about."""
        return self._size

    def clear(self) -> None:
        """Forget what is compiled; requests keep what they have."""
        with self._lock:
            self._cache = OrderedDict((key, one) for key, one in self._cache.items() if not one.done())
            self._size = 0

    def close(self) -> None:
        """End the threads. What is being compiled is cancelled; only calls of a library are waited for."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
            self._cache.clear()
            pending = list(self._pending)
        for compilation in pending:
            self._cancel(compilation)
        if pool is not None:
            pool.shutdown(wait=True)

    def _cancel(self, compilation: Compilation) -> None:
        compilation.budget.cancel()
        self._turns.look_again()

    def _begin(self, constraint: Constraint) -> Compilation:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="rootlet-grammar")
        turn = _Turn(self._turns, self)
        budget = turn.budget = Budget(self._seconds, turn.pass_on)
        compilation = self._cache[constraint] = Compilation(constraint, budget, self._let_go)
        self._pending.add(compilation)
        self._pool.submit(self._run, compilation, turn)
        return compilation

    def _run(self, compilation: Compilation, turn: _Turn) -> None:
        error = grammar = None
        try:
            with turn:
                compilation.budget.spend(0, compilation.constraint.kind)
                grammar = self._backend.compile(compilation.constraint, compilation.budget)
        except GrammarError as refused:
            error = GrammarError(str(refused))  # without the frames, and all that stands in them
        except RecursionError:
            error = GrammarError(f"The {compilation.constraint.kind} is nested too deeply.")
        except Exception as failure:  # a library's own: it concerns requests with this constraint only
            error = GrammarError(f"The {compilation.constraint.kind} cannot be compiled: {failure!r}")
        with self._lock:
            self._pending.discard(compilation)
            said = str(error) if grammar is None else ""
            compilation.size = _ENTRY_BYTES + 2 * len(compilation.constraint.text) + 2 * len(said)
            if grammar is not None:
                compilation.size += grammar.size
            if self._cache.get(compilation.constraint) is compilation:
                self._size += compilation.size
                self._forget()
        if grammar is None:
            compilation.set_exception(error)
        else:
            compilation.set_result(grammar)

    def _forget(self) -> None:
        """Make room in the cache, the least recently wanted first."""
        while self._size > self._max_bytes:
            known = next((key for key, one in self._cache.items() if one.size), None)
            if known is None:
                return
            self._size -= self._cache.pop(known).size


class _Turns:
    """Who may work: a few at once, and those first that have worked least: what is small need not wait."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._condition = threading.Condition()
        self._waiting: list[tuple[float, int]] = []
        self._order = itertools.count()

    def take(self, spent: float, is_cancelled: Callable[[], bool]) -> None:
        """Wait for a turn, which also comes when it is only needed to end."""
        with self._condition:
            mine = spent, next(self._order)
            heapq.heappush(self._waiting, mine)
            while not (is_cancelled() or (self._free > 0 and self._waiting[0] == mine)):
                self._condition.wait()
            self._waiting.remove(mine)
            heapq.heapify(self._waiting)
            self._free -= 1
            self._condition.notify_all()

    def give(self) -> None:
        """End a turn."""
        with self._condition:
            self._free += 1
            self._condition.notify_all()

    def are_wanted(self, spent: float) -> bool:
        """Whether somebody waits who has worked less."""
        with self._condition:
            return bool(self._waiting) and self._free <= 0 and self._waiting[0][0] < spent

    def look_again(self) -> None:
        """Somebody was cancelled."""
        with self._condition:
            self._condition.notify_all()


class _Turn:
    """One compilation's share of the processor; a context manager around all of its work."""

    budget: Budget

    def __init__(self, turns: _Turns, compiler: GrammarCompiler) -> None:
        self._turns = turns
        self._compiler = compiler
        self._seen = 0.0

    def __enter__(self) -> None:
        self._turns.take(0.0, lambda: self.budget.is_cancelled)

    def __exit__(self, *exc_info: object) -> None:
        self._turns.give()

    def pass_on(self, spent: float) -> None:
        """Between two pieces of work: let others work that have done less, and the engine have the GIL.

        A thread that keeps the interpreter busy makes each of the engine's kernels wait for it. So it works
        for fractions of a millisecond, and sleeps a multiple of that while the engine has something to do.
        """
        worked, self._seen = spent - self._seen, spent
        if self._turns.are_wanted(spent):
            self._turns.give()
            self._turns.take(spent, lambda: self.budget.is_cancelled)
        if self._compiler.is_busy():
            time.sleep(worked * (1 if spent < _YOUNG else 4))
