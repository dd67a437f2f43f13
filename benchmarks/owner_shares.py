"""Where the time of an engine's own thread goes: shares of the parts of a step, and the functions inside.

    with watch(engine) as owner:          # functions=True: sample them as well
        engine.generate(...)
    print(owner.report())

Shares are measured by clocks around the parts of a step, some ten readings of a clock each. Samples alone say
nothing about shares: a thread that samples gets the interpreter where the owner lets go of it, so that of
3 ms of Python before every 5 ms of waiting it finds 2 % instead of 37 %. Functions are sampled, every 2 ms;
threads then take turns at the interpreter after a tenth of a millisecond, not five, and the samples of a part
are weighed so that together they make its share. Latencies are not to be measured meanwhile.

Parts: ``waiting`` for the device, and for the interpreter right after; ``scheduling``; ``launching``;
``committing``; ``telling`` callers; ``idle``, with no request; ``other``: what callers asked for, such as new
requests, and what is between the parts.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import rootlet

PARTS = ("waiting", "scheduling", "launching", "committing", "telling", "idle", "other")
PERIOD = 0.002  # seconds between two samples
TURN = 0.0001  # seconds until a thread that wants the interpreter is given it, while there are samples
OWNER = "rootlet-engine"  # the thread's name
_PACKAGE = Path(rootlet.__file__).parent
_HERE = Path(__file__).parent


class Owner:
    """Seconds by part, each second in one part only, and samples of functions."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.samples: Counter[tuple[str, str]] = Counter()  # (part, function)
        self.part = "other"
        self._since = time.perf_counter()

    def begin(self) -> None:
        """From now on time counts."""
        self.seconds, self._since = dict.fromkeys(PARTS, 0.0), time.perf_counter()

    def enter(self, part: str) -> str:
        """The owner goes on to ``part``. Returns the part it comes from."""
        now, before = time.perf_counter(), self.part
        self.seconds[before] += now - self._since
        self.part, self._since = part, now
        return before

    def shares(self) -> dict[str, float]:
        """Percent of the time by part; together they make 100."""
        total = sum(self.seconds.values()) or 1.0
        return {part: 100 * seconds / total for part, seconds in self.seconds.items()}

    def functions(self) -> list[tuple[str, str, float]]:
        """Part, function and percent of the time, largest first."""
        shares, counts = self.shares(), Counter[str]()
        for (part, _), count in self.samples.items():
            counts[part] += count
        rows = [(p, name, shares[p] * count / counts[p]) for (p, name), count in self.samples.items()]
        return sorted(rows, key=lambda row: -row[2])

    def report(self, longest: int = 20) -> str:
        """Shares, and the functions where most of the time goes."""
        lines = ["  ".join(f"{part} {share:.1f} %" for part, share in self.shares().items())]
        lines += [f"{share:6.1f} %  {part:10}  {name}" for part, name, share in self.functions()[:longest]]
        return "\n".join(lines)


@contextlib.contextmanager
def watch(engine: Any, *, functions: bool = False) -> Iterator[Owner]:
    """Within the block, measure the parts of ``engine``'s own thread; what is measured is read afterwards."""
    owner, loop = Owner(), engine._loop
    undo: list[Callable[[], None]] = []

    def begin(core: Any) -> None:
        launch = _timed(owner, "launching", core.runner.launch)
        core.runner.launch = lambda batch: _TimedStep(launch(batch), owner)
        undo.append(lambda: delattr(core.runner, "launch"))
        for holder, name, part in (
            (core.scheduler, "schedule", "scheduling"),
            (core, "_commit", "committing"),
            (core, "_tell", "telling"),
            (loop.bells, "step", "telling"),
            (loop, "_wait_for_work", "idle"),
        ):
            setattr(holder, name, _timed(owner, part, getattr(holder, name)))
            undo.append(lambda holder=holder, name=name: delattr(holder, name))
        owner.begin()

    def end(core: Any) -> None:  # noqa: ARG001
        owner.enter("other")
        for step in undo:
            step()

    loop.call(begin)
    try:
        with _sampled(owner) if functions else contextlib.nullcontext():
            yield owner
    finally:
        loop.call(end)


class _TimedStep:
    """A step under way, as the core knows it."""

    def __init__(self, step: Any, owner: Owner) -> None:
        self.draw = _timed(owner, "launching", step.draw)
        self.wait = _timed(owner, "waiting", step.wait)


def _timed(owner: Owner, part: str, function: Callable) -> Callable:
    def timed(*args: Any) -> Any:
        before = owner.enter(part)
        try:
            return function(*args)
        finally:
            owner.enter(before)

    return timed


@contextlib.contextmanager
def _sampled(owner: Owner) -> Iterator[None]:
    ident = next(thread.ident for thread in threading.enumerate() if thread.name == OWNER)
    ended, turn = threading.Event(), sys.getswitchinterval()

    def sample() -> None:
        while not ended.wait(PERIOD):
            frame = sys._current_frames().get(ident)
            if frame is not None:
                owner.samples[owner.part, _function(frame)] += 1

    sampler = threading.Thread(target=sample, name="owner-sampler", daemon=True)
    sys.setswitchinterval(TURN)
    sampler.start()
    try:
        yield
    finally:
        ended.set()
        sampler.join()
        sys.setswitchinterval(turn)


def _function(frame: FrameType) -> str:
    """The innermost function of the package on a stack, as file:name."""
    found: FrameType | None = frame
    while found is not None:
        path = Path(found.f_code.co_filename)
        if path.is_relative_to(_PACKAGE) and path.parent != _HERE:
            return f"{path.relative_to(_PACKAGE)}:{found.f_code.co_name}"
        found = found.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"
