"""Fuzzed requests against one engine, from several threads and an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import faulthandler
import logging
import threading
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from rootlet import Engine, RootletError

from .cases import CASES
from .process import resident
from .report import Report
from .tiny_model import write_model

OPTIONS = {
    "dtype": "float32",
    "max_total_tokens": 4096,
    "page_size": 4,
    "max_running_requests": 16,
    "device": "cpu",
}
PLAIN = ("a quick look at", {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True})
NUM_BLOCKS = 10  # the engine is looked at after each
WARM_UP = 3  # blocks until memory counts: caches of bounded size fill first


class Hang(Exception):
    """A case, or the engine, does not come to an end."""


class Fuzz:
    """Runs ``requests`` cases; case i is drawn from (seed, i), whatever thread takes it.

    Args:
        only: run this case and no other.
        skip: names of cases to leave out.
        timeout: seconds after which a case counts as hanging.
    """

    def __init__(
        self,
        requests: int,
        seed: int,
        *,
        threads: int = 6,
        timeout: float = 120.0,
        only: int | None = None,
        skip: tuple[str, ...] = (),
    ) -> None:
        self.report = Report(seed)
        self._numbers = range(requests) if only is None else range(only, only + 1)
        self._threads, self._timeout, self._skip = threads, timeout, skip
        self._running: dict[int, tuple[str, float]] = {}  # case -> its name and when it began
        self._loop = asyncio.new_event_loop()

    def run(self, folder: Path) -> Report:
        """Do it with a model written to ``folder``; after a hang the engine and its threads are left."""
        logging.getLogger("rootlet").setLevel(logging.CRITICAL)  # provoked errors by the thousand
        tqdm.monitor_interval = 0  # a thread of its own, which would be left
        before = set(threading.enumerate())
        looper = threading.Thread(target=self._loop.run_forever, daemon=True)
        looper.start()
        engine = Engine(write_model(folder), **OPTIONS)
        expected = engine.generate(*PLAIN).token_ids
        size = -(-len(self._numbers) // NUM_BLOCKS)
        try:
            with tqdm(total=len(self._numbers), unit="requests") as bar:
                for first in range(0, len(self._numbers), size):
                    self._run_block(engine, self._numbers[first : first + size], bar)
                    self._look_at(engine, expected)
            self._guard("close", engine.close)
        except Hang as hang:
            faulthandler.dump_traceback(all_threads=True)
            self.report.fail(f"hang: {hang}", "the stacks of all threads are on standard error")
            return self.report
        self._loop.call_soon_threadsafe(self._loop.stop)
        looper.join()
        self._loop.close()
        if left := set(threading.enumerate()) - before - {looper}:
            self.report.fail("threads left after close", ", ".join(thread.name for thread in left))
        if len(self._numbers) >= 1000:
            self.report.check_memory(WARM_UP)
        return self.report

    def _run_block(self, engine: Engine, numbers: range, bar: tqdm) -> None:
        queue = iter(numbers)
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    number = next(queue, None)
                if number is None:
                    return
                self._run_case(engine, number)
                bar.update()

        workers = [threading.Thread(target=work, daemon=True) for _ in range(self._threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(1.0)
                now = time.monotonic()
                for number, (name, begun) in list(self._running.items()):
                    if now - begun > self._timeout:
                        raise Hang(f"case {number} ({name}): {self._repro(number)}")

    def _run_case(self, engine: Engine, number: int) -> None:
        rng = Random(f"{self.report.seed}:{number}")
        kinds = [(case, weight) for case, weight in CASES if case.__name__ not in self._skip]
        [case] = rng.choices([case for case, _ in kinds], [weight for _, weight in kinds])
        self._running[number] = case.__name__, time.monotonic()
        try:
            if asyncio.iscoroutinefunction(case):
                outcome = asyncio.run_coroutine_threadsafe(case(engine, rng), self._loop).result()
            else:
                outcome = case(engine, rng)
        except RootletError as error:
            outcome = type(error).__name__
            if outcome in ("EngineFailedError", "EngineClosedError"):
                self.report.fail(f"{outcome} in {case.__name__}", f"{self._repro(number)}: {error!r:.300}")
        except BaseException as error:
            outcome = type(error).__name__
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            self.report.fail(
                f"{outcome} at {where} in {case.__name__}", f"{self._repro(number)}: {error!r:.300}"
            )
        self.report.outcomes[f"{case.__name__}: {outcome}"] += 1
        del self._running[number]

    def _repro(self, number: int) -> str:
        return f"python -m tests.abuse fuzz --seed {self.report.seed} --only {number}"

    def _guard(self, what: str, call: Any) -> Any:
        """``call()``, or Hang if it takes too long."""
        results: list[Any] = []

        def work() -> None:
            try:
                results.append((call(), None))
            except BaseException as error:
                results.append((None, error))

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        worker.join(self._timeout)
        if not results:
            raise Hang(what)
        result, error = results[0]
        if error is not None:
            raise Hang(f"{what} raised {error!r}") from error
        return result

    def _look_at(self, engine: Engine, expected: tuple[int, ...]) -> None:
        """After a block: the engine answers as at the start, and nothing that was left holds a page."""
        if self._guard("a plain request", lambda: engine.generate(*PLAIN)).token_ids != expected:
            self.report.fail("other tokens than at the start", f"{PLAIN}")
        deadline = time.monotonic() + self._timeout
        while not self._guard("flush_cache", engine.flush_cache):
            if time.monotonic() > deadline:
                self.report.fail("requests that never end", f"{dataclasses.asdict(engine.stats())}")
                return
            time.sleep(0.01)
        stats = self._guard("stats", engine.stats)
        if stats.pages_free != stats.pages_total:
            self.report.fail("pages left", f"{stats.pages_total - stats.pages_free} of {stats.pages_total}")
        with contextlib.suppress(FileNotFoundError):  # no /proc
            self.report.memory.append(resident())
