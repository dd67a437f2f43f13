"""The host's share of a decode step: schedule, launch, commit and deliver, without a model or a GPU.

    python benchmarks/host.py [--rows 1,64,256,1000] [--page-size 64] [--stream] [--profile]

The runner answers at once with a constant token, so a step costs what scheduler and core take for it, and,
with ``--layout``, what it takes to lay out its arrays besides. On a GPU this must stay below the time of the
step the device is busy with. Prompts are random, outputs greedy, steps overlap; the figure is the best of
several windows of steady decoding, in microseconds per step and per row. About ten seconds.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import time
from collections.abc import Iterator, Sequence

from rootlet.cache.page_pool import PagePool
from rootlet.cache.radix_cache import RadixCache
from rootlet.cache.slot_pool import SlotPool
from rootlet.engine.core import EngineCore
from rootlet.engine.replies.growing import GrowingOutput
from rootlet.engine.replies.outputs import RequestOutput
from rootlet.engine.requests.arguments import GenerateArgs
from rootlet.engine.requests.factory import RequestFactory
from rootlet.engine.requests.prompts import Limits
from rootlet.engine.schedule.batch import Batch, StepResult
from rootlet.engine.schedule.policies import make_policy
from rootlet.engine.schedule.scheduler import Scheduler
from rootlet.engine.steps.batch_layout import lay_out

PROMPT_TOKENS = 128
WINDOW = 32  # steps timed together
VOCAB = 128_256


class ConstantStep:
    """A launched step that is done already."""

    def __init__(self, batch: Batch) -> None:
        self.result = StepResult([7] * len(batch.sampling_requests))

    def draw(self) -> None:
        """Nothing is left to draw."""

    def wait(self) -> StepResult:
        """The same token for every row that samples."""
        return self.result


class ConstantRunner:
    """A runner that computes nothing; ``layout`` makes it lay out the arrays of a step."""

    def __init__(self, *, layout: bool) -> None:
        self.layout = layout

    def launch(self, batch: Batch) -> ConstantStep:
        """Start, and end, a step."""
        if self.layout:
            layout = lay_out(batch)
            _ = layout.slots, layout.positions, layout.kv_lens, layout.last_tokens
        return ConstantStep(batch)


class Ignore:
    """A listener that wants to know nothing."""

    def grow(self, growing: GrowingOutput) -> None:
        """Hear where to look at a request."""

    def deliver(self, output: RequestOutput) -> None:
        """Take the final output."""

    def fail(self, error: BaseException) -> None:
        """Take an error."""
        raise error


def decoding_core(num_rows: int, num_steps: int, args: argparse.Namespace) -> EngineCore:
    """A core in which so many requests have been prefilled and will decode for at least ``num_steps``."""
    room = num_rows * (PROMPT_TOKENS + num_steps + args.page_size)
    pool = PagePool(room // args.page_size + 2)
    scheduler = Scheduler(
        pool=pool,
        cache=RadixCache(pool, args.page_size, enabled=True),
        slots=SlotPool(num_rows + 1),
        page_size=args.page_size,
        policy=make_policy("fcfs"),
        chunked_prefill_size=8192,
        max_prefill_tokens=16384,
    )
    core = EngineCore(scheduler, ConstantRunner(layout=args.layout), overlap=True)
    factory = RequestFactory(None, Limits(VOCAB, 131_072, room), [2], 0)
    rng = random.Random(0)
    # lengths differ, so that not everybody needs a page in the same step
    lengths = [PROMPT_TOKENS - rng.randrange(64) for _ in range(num_rows)]
    prompts = [[rng.randrange(100, VOCAB) for _ in range(length)] for length in lengths]
    params = {"temperature": 0, "max_new_tokens": num_steps + 32, "ignore_eos": not args.check_stop}
    submissions, _ = factory.build(
        GenerateArgs(input_ids=prompts, sampling_params=params, stream=args.stream)
    )
    for submission in submissions:
        core.add(submission, Ignore())
    while core.scheduler.waiting or any(r.num_output_tokens < 2 for r in core.scheduler.running):
        core.step()
    return core


def windows(core: EngineCore, count: int) -> Iterator[float]:
    """Seconds per step, over windows of ``WINDOW`` steps."""
    for _ in range(count):
        start = time.perf_counter()
        for _ in range(WINDOW):
            core.step()
        yield (time.perf_counter() - start) / WINDOW


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1,64,256,1000", help="numbers of requests, comma-separated")
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--windows", type=int, default=16, help=f"windows of {WINDOW} steps; the best counts")
    parser.add_argument("--stream", action="store_true", help="every request is streamed, token by token")
    parser.add_argument("--check-stop", action="store_true", help="requests have a stop token")
    parser.add_argument("--layout", action="store_true", help="lay out the arrays of each step as well")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    args = parser.parse_args(arguments)
    print(f"{'rows':>6} {'us/step':>9} {'us/row':>8}   (page size {args.page_size})")
    for num_rows in map(int, args.rows.split(",")):
        core = decoding_core(num_rows, (2 * args.windows + 1) * WINDOW, args)
        best = min(windows(core, args.windows)) * 1e6
        print(f"{num_rows:>6} {best:>9.1f} {best / num_rows:>8.3f}")
        if args.profile:
            with cProfile.Profile() as profile:
                list(windows(core, args.windows))
            pstats.Stats(profile).sort_stats("tottime").print_stats(12)


if __name__ == "__main__":
    main()
