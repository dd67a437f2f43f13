"""Ever-new grammars of all kinds beside plain requests, for as long as asked; memory must then be flat."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from random import Random

from tqdm import tqdm

from rootlet import Engine, RootletError

from . import odd
from .process import MB, resident
from .report import Report
from .tiny_model import write_model

OPTIONS = {"dtype": "float32", "max_total_tokens": 4096, "max_running_requests": 16, "device": "cpu"}
WARM_UP = 0.3  # of the time: until there are as many compiled grammars as are kept
LOOKS = 30  # at the memory


class Soak:
    """Two threads ask for what was never asked for before, one for plain answers, for ``seconds``."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.report = Report(seed)
        self._seconds = seconds

    def run(self, folder: Path) -> Report:
        """Do it with a model written to ``folder``."""
        logging.getLogger("rootlet").setLevel(logging.ERROR)
        tqdm.monitor_interval = 0  # a thread of its own, which would be left
        before = set(threading.enumerate())
        stop = threading.Event()
        with Engine(write_model(folder), **OPTIONS) as engine:
            asked = [odd.constraint_of_a_kind, odd.constraint_of_a_kind, lambda _: {}]
            arguments = [(engine, stop, i, draw) for i, draw in enumerate(asked)]
            workers = [threading.Thread(target=self._ask, args=one, daemon=True) for one in arguments]
            for worker in workers:
                worker.start()
            try:
                self._watch(stop)
            finally:
                stop.set()
                for worker in workers:
                    worker.join()
        if left := set(threading.enumerate()) - before:
            self.report.fail("threads left after close", ", ".join(thread.name for thread in left))
        self.report.check_memory(int(WARM_UP * LOOKS))
        return self.report

    def _watch(self, stop: threading.Event) -> None:
        with tqdm(total=LOOKS, unit="looks") as bar:
            for _ in range(LOOKS):
                if stop.wait(self._seconds / LOOKS):
                    return
                self.report.memory.append(resident())
                done = sum(self.report.outcomes.values())
                bar.write(
                    f"{time.strftime('%H:%M:%S')}  {self.report.memory[-1] / MB:.0f} MB, {done} requests"
                )
                bar.update()

    def _ask(self, engine: Engine, stop: threading.Event, number: int, draw: object) -> None:
        rng = Random(f"{self.report.seed}:{number}")
        while not stop.is_set():
            constraint = draw(rng)
            params = {"max_new_tokens": 24, "temperature": 1.0, "seed": rng.randrange(10**9)} | constraint
            kind = next(iter(constraint), "plain")
            try:
                engine.generate(f"Request {rng.randrange(10**6)}: ", params)
                self.report.outcomes[kind] += 1
            except RootletError as error:
                self.report.fail(f"{type(error).__name__} of {kind}", f"{constraint}: {error!r:.300}")
            except BaseException as error:
                self.report.fail(f"{type(error).__name__} of {kind}", f"{constraint}: {error!r:.300}")
                stop.set()
