"""The attention kernels on a GPU: correctness, then time over a grid of configurations, beside torch's own.

    python benchmarks/gpu_attention.py [--only decode prefill prefix sdpa] [--page-sizes 16 64 128]

Heads are those of Llama-3.1-8B (32 q, 8 kv, 128) and Qwen2.5-0.5B (14 q, 2 kv, 64), all bf16 and random.
GB/s counts K and V once per row, TFLOP/s the visible half of the products. Calls run back to back in a CUDA
graph, on data that the L2 cache does not hold; each figure is the median of several replays. Kernels are
compiled first, in parallel. Rows marked ``*`` are the best of their case; failures are listed by reason.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from rootlet.kernels.attention import PagedAttentionPlan, paged_attention_reference
from rootlet.kernels.gpu.decode_attention import decode_attention, num_decode_splits
from rootlet.kernels.gpu.merge_states import empty_partials
from rootlet.kernels.gpu.prefill_attention import PrefillConfig, prefill_attention, prefill_tiles, tile_tokens
from rootlet.kernels.gpu.prefix_attention import prefix_attention, rows_per_tile
from rootlet.kernels.scoring import Scoring

L8B, Q05B = (32, 8, 128), (14, 2, 64)


class Run(NamedTuple):
    """One measurement: a case, the page size and how the kernel is configured."""

    kind: str
    case: str
    page_size: int
    options: tuple


class Batch(NamedTuple):
    """Rows of (q tokens, context), as ``copies`` batches of pages of their own."""

    rows: tuple[tuple[int, int], ...]
    heads: tuple[int, int, int]
    copies: int = 1


def spread(rows: int, low: int, high: int) -> tuple[tuple[int, int], ...]:
    return tuple((1, int(x)) for x in np.linspace(low, high, rows).round())


DECODE = {
    "L8B 256x640..768": Batch(spread(256, 640, 768), L8B),
    "L8B 32x8192": Batch(spread(32, 8192, 8192), L8B),
    "L8B 1x640": Batch(((1, 640),), L8B, copies=64),
    "Q05B 256x640..768": Batch(spread(256, 640, 768), Q05B, copies=2),
    "Q05B 1x640": Batch(((1, 640),), Q05B, copies=256),
}
PREFILL = {
    "L8B 1x32768": Batch(((32768, 32768),), L8B),
    "L8B 16x1024": Batch(((1024, 1024),) * 16, L8B),
    "L8B 8192 after 24576": Batch(((8192, 32768),), L8B),
    "L8B 128x64 after 2048": Batch(((64, 2112),) * 128, L8B),
}
DECODE_OPTIONS = [
    (64, 4, 3),
    (64, 4, 2),
    (64, 2, 3),
    (32, 4, 3),
    (32, 2, 3),
    (32, 2, 5),
    (32, 1, 4),
    (128, 4, 2),
]
PREFILL_OPTIONS = [  # with TMA where the page allows, and without at the first of them
    (128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (128, 64, 4, 2), (128, 32, 4, 3), (64, 64, 4, 2),
    (64, 128, 4, 2), (128, 128, 8, 3),
]  # fmt: skip
PREFIX_OPTIONS = [(64, 8, 3), (128, 8, 2), (64, 4, 2), (64, 8, 2)]


def grid(page_sizes: list[int], kinds: list[str]) -> list[Run]:
    """Return every measurement asked for."""
    runs = []
    for page_size in page_sizes:
        for case, batch in DECODE.items() if "decode" in kinds else ():
            default = num_decode_splits(len(batch.rows), batch.heads[1])
            for splits in sorted({default, default * 2, max(1, default // 2)}):
                options = DECODE_OPTIONS if splits == default else DECODE_OPTIONS[:1]
                runs += [Run("decode", case, page_size, (splits, *rest)) for rest in options]
        for case in PREFILL if "prefill" in kinds else ():
            for index, (block_m, block_n, warps, stages) in enumerate(PREFILL_OPTIONS):
                if page_size >= max(block_n, 64):
                    runs.append(Run("prefill", case, page_size, (block_m, block_n, warps, stages, True)))
                if index == 0 or page_size < 64:
                    runs.append(Run("prefill", case, page_size, (block_m, block_n, warps, stages, False)))
        if "prefix" in kinds:
            runs.append(Run("w3 plain", "L8B W3 32x32", page_size, (64, 4, 3)))
            for part in ("w3 prefix", "w3 own", "w3 both"):
                for options in PREFIX_OPTIONS if part == "w3 prefix" else DECODE_OPTIONS[:5]:
                    runs.append(Run(part, "L8B W3 32x32", page_size, options))
    return runs


class Tensors:
    """A pool of K and V, page tables in random order, and queries for the rows of ``copies`` batches."""

    def __init__(self, batch: Batch, page_size: int) -> None:
        rows = batch.rows * batch.copies
        used = [-(-context // page_size) for _, context in rows]
        num_q, num_kv, dim = batch.heads
        num_pages = sum(used) + 1
        generator = torch.Generator("cuda").manual_seed(0)
        shape = (num_pages, page_size, num_kv, dim)
        self.k = torch.randn(shape, dtype=torch.bfloat16, device="cuda", generator=generator)
        self.v = torch.randn(shape, dtype=torch.bfloat16, device="cuda", generator=generator)
        order = np.random.default_rng(0).permutation(num_pages - 1).astype(np.int32) + 1
        table = np.zeros((len(rows), max(used)), dtype=np.int32)
        for row, (end, count) in enumerate(zip(np.cumsum(used), used)):
            table[row, :count] = order[end - count : end]
        self.pages = torch.from_numpy(table).cuda()
        self.slots = torch.arange(len(rows), dtype=torch.int32, device="cuda").view(batch.copies, -1)
        counts = np.array([count for count, _ in batch.rows])
        lens = np.array([context for _, context in batch.rows])
        self.counts, self.contexts = counts, lens
        self.kv_lens = torch.from_numpy(lens.astype(np.int32)).cuda()
        starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        self.q_starts = torch.from_numpy(starts).cuda()
        self.q = torch.randn(starts[-1], num_q, dim, dtype=torch.bfloat16, device="cuda", generator=generator)
        self.out = torch.empty_like(self.q)
        self.scale = dim**-0.5

    def reference(self) -> torch.Tensor:
        """The first copy's result."""
        page_size, max_q, max_kv = self.k.shape[1], int(self.counts.max()), int(self.contexts.max())
        table = self.pages[self.slots[0].long()]
        plan = PagedAttentionPlan(table, self.q_starts, self.kv_lens, page_size, max_q, max_kv)
        return paged_attention_reference(self.q, self.k, self.v, plan, Scoring(self.scale))


def decode_calls(tensors: Tensors, options: tuple) -> list[Callable[[], object]]:
    splits, block_n, warps, stages = options
    rows, num_q, dim = tensors.q.shape
    partials = empty_partials(rows, num_q, splits, dim, tensors.q.device)

    def call(slots):
        return decode_attention(
            tensors.q, tensors.k, tensors.v, tensors.pages, slots, tensors.kv_lens,
            Scoring(tensors.scale), num_splits=splits, partials=partials, out=tensors.out,
            block_n=block_n, num_warps=warps, num_stages=stages,
        )  # fmt: skip

    return [lambda slots=slots: call(slots) for slots in tensors.slots]


def prefill_calls(tensors: Tensors, options: tuple) -> list[Callable[[], object]]:
    config = PrefillConfig(*options)
    tokens = tile_tokens(config.block_m, tensors.q.shape[1], tensors.k.shape[2])
    tiles = torch.from_numpy(prefill_tiles(tensors.counts, tokens, tensors.contexts)).cuda()
    return [
        lambda: prefill_attention(
            tensors.q, tensors.k, tensors.v, tensors.pages, tensors.slots[0], tensors.q_starts,
            tensors.kv_lens, tiles, Scoring(tensors.scale), out=tensors.out, config=config,
        )
    ]  # fmt: skip


class Shared:
    """W3: groups of rows with a common prefix, in shuffled order; lengths spread over ``own``."""

    def __init__(self, page_size: int, groups: int, members: int, shared: int, own: tuple[int, int]) -> None:
        rows = groups * members
        lens = shared + np.linspace(*own, rows).round().astype(np.int32)
        self.tensors = Tensors(Batch(tuple((1, int(n)) for n in lens), L8B), page_size)
        group = np.random.default_rng(3).permutation(rows) // members
        table = self.tensors.pages.cpu().numpy()
        leaders = np.array([np.flatnonzero(group == g)[0] for g in range(groups)])
        table[:, : shared // page_size] = table[leaders[group], : shared // page_size]
        self.tensors.pages = torch.from_numpy(table).cuda()
        per_tile = rows_per_tile(*L8B[:2])
        tiles = np.full((groups * -(-members // per_tile), per_tile), -1, dtype=np.int32)
        for g in range(groups):
            found = np.flatnonzero(group == g)
            for part in range(0, members, per_tile):
                chunk = found[part : part + per_tile]
                tiles[g * -(-members // per_tile) + part // per_tile, : len(chunk)] = chunk
        self.tile_rows = torch.from_numpy(tiles).cuda()
        self.tile_lens = torch.full((len(tiles),), shared, dtype=torch.int32, device="cuda")
        self.starts = torch.full((rows,), shared, dtype=torch.int32, device="cuda")
        self.partials = empty_partials(rows, L8B[0], 1, L8B[2], self.starts.device)
        self.prefix_tokens, self.own_tokens = groups * shared, int(lens.sum()) - rows * shared

    def prefix(self, options: tuple) -> None:
        block_n, warps, stages = options
        t = self.tensors
        prefix_attention(
            t.q, t.k, t.v, t.pages, t.slots[0], self.tile_rows, self.tile_lens, Scoring(t.scale),
            partials=self.partials, num_splits=1, block_n=block_n, num_warps=warps, num_stages=stages,
        )  # fmt: skip

    def own(self, options: tuple) -> torch.Tensor:
        block_n, warps, stages = options
        t = self.tensors
        return decode_attention(
            t.q, t.k, t.v, t.pages, t.slots[0], t.kv_lens, Scoring(t.scale), num_splits=1,
            kv_starts=self.starts, partials=self.partials, first_split=1, out=t.out,
            block_n=block_n, num_warps=warps, num_stages=stages,
        )  # fmt: skip

    def plain(self, options: tuple) -> torch.Tensor:
        return decode_calls(self.tensors, (1, *options))[0]()


def prepare(run: Run, small: bool, made: dict) -> tuple[list[Callable[[], object]], float, str]:
    """Return the calls of a measurement, their work (GB or TFLOP of one call) and its unit."""
    key = (run.kind.split()[0], run.case, run.page_size)
    if key not in made:
        made.clear()  # the memory of the case before
        torch.cuda.empty_cache()
    if run.kind.startswith("w3"):
        if key not in made:
            sizes = (2, 32, 256, (40, 80)) if small else (32, 32, 2048, (64, 128))
            made[key] = Shared(run.page_size, *sizes)
        shared = made[key]
        steps = {"w3 prefix": shared.prefix, "w3 own": shared.own, "w3 plain": shared.plain}
        tokens = {"w3 prefix": shared.prefix_tokens, "w3 own": shared.own_tokens}
        work = tokens.get(run.kind, shared.prefix_tokens + shared.own_tokens) * 4 * L8B[1] * L8B[2] / 1e9
        if run.kind == "w3 both":
            prefix = PREFIX_OPTIONS[1 if run.page_size >= 128 else 0]
            return [lambda: (shared.prefix(prefix), shared.own(run.options))], work, "GB/s"
        return [lambda: steps[run.kind](run.options)], work, "GB/s"
    batch = (DECODE if run.kind == "decode" else PREFILL)[run.case]
    if small:
        batch = Batch(tuple((min(q, 70), min(n, 150)) for q, n in batch.rows[:2]), batch.heads)
    if key not in made:
        made[key] = Tensors(batch, run.page_size)
    tensors = made[key]
    if run.kind == "decode":
        work = float(tensors.contexts.sum()) * 4 * batch.heads[1] * batch.heads[2] / 1e9
        return decode_calls(tensors, run.options), work, "GB/s"
    seen = sum(q * (n - q) + q * (q + 1) / 2 for q, n in batch.rows)
    return prefill_calls(tensors, run.options), 4 * seen * batch.heads[0] * batch.heads[2] / 1e12, "TFLOP/s"


def compile_small(run: Run) -> tuple[Run, str | None]:
    """Run a configuration once on small shapes, which leaves its kernels in Triton's disk cache."""
    try:
        for call in prepare(run, True, {})[0]:
            call()
        torch.cuda.synchronize()
    except Exception as error:
        return run, f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    return run, None


def kernel(run: Run) -> tuple:
    """Return what tells one compiled kernel from another."""
    if run.kind != "decode":
        return run.kind, run.page_size, run.options
    splits, *rest = run.options
    return run.kind, run.case.split()[0], run.page_size, splits > 1, *rest


def check() -> None:
    """Print the largest error of each kernel relative to the largest result of the fp32 reference."""
    for page_size in (16, 64, 128):
        errors = []
        for heads in (L8B, Q05B):
            tensors = Tensors(Batch(((1, 1), (1, 700), (1, 65), (1, 2112)), heads), page_size)
            for splits in (1, 16):
                errors.append(relative(decode_calls(tensors, (splits, 64, 4, 3))[0](), tensors.reference()))
        tensors = Tensors(Batch(((300, 300), (129, 2000), (1, 77), (0, 5)), L8B), page_size)
        for tma in {False, page_size >= 64}:
            errors.append(relative(prefill_calls(tensors, (128, 64, 8, 3, tma))[0](), tensors.reference()))
        print(f"check page {page_size:3}: decode L8B, split, Q05B, split, prefill, TMA:", *errors)
    shared = Shared(64, 3, 40, 512, (3, 200))
    expected = shared.tensors.reference()
    shared.prefix(PREFIX_OPTIONS[0])
    print("check W3: plain, shared:", relative(shared.own((64, 4, 3)), expected),
          relative(shared.plain((64, 4, 3)), expected), flush=True)  # fmt: skip


def relative(actual: torch.Tensor, expected: torch.Tensor) -> str:
    return f"{((actual.float() - expected.float()).abs().max() / expected.float().abs().max()).item():.1e}"


def microseconds(calls: list[Callable[[], object]], least: float = 0.01) -> float:
    """Return the median time of one call; calls repeat in a graph until it takes ``least`` seconds."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for call in calls[:8]:
        call()
    end.record()
    torch.cuda.synchronize()
    once = start.elapsed_time(end) / 1e3 / len(calls[:8])
    rounds = max(1, min(2000, int(least / max(once, 2e-6))) // len(calls))  # a capture takes time too
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    times = []
    for _ in range(5):
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / (rounds * len(calls)))
    return statistics.median(times[1:])


def measure(runs: list[Run]) -> None:
    """Time all runs, case by case, and print a table of each."""
    made: dict = {}
    cases: dict[tuple[str, str], list] = {}
    for run in runs:
        try:
            calls, work, unit = prepare(run, False, made)
            time = microseconds(calls)
        except Exception as error:
            torch.cuda.synchronize()
            print("failed", *run, type(error).__name__, str(error).splitlines()[0][:90])
            continue
        cases.setdefault((run.kind, run.case), []).append((time, run, work / time * 1e6, unit))
    columns = {
        "decode": "splits, block_n, warps, stages",
        "prefill": "block_m, block_n, warps, stages, TMA",
        "w3": "block_n, warps, stages",
    }
    for (kind, case), found in cases.items():
        print(f"\n{kind}: {case} ({columns[kind.split()[0]]})")
        best = min(found)[0]
        for time, run, rate, unit in sorted(found):
            if time <= 1.6 * best:
                mark = "*" if time == best else " "
                print(
                    f" {mark} page {run.page_size:3}  {run.options!s:28} {time:10.1f} us {rate:8.0f} {unit}"
                )


def sdpa() -> None:
    """Time torch's attention on contiguous tensors of 32 heads, causal."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    print("\ntorch scaled_dot_product_attention, contiguous, 32 q and kv heads of 128, causal")
    for tokens in (8192, 32768):
        q, k, v = (torch.randn(1, 32, tokens, 128, dtype=torch.bfloat16, device="cuda") for _ in range(3))
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            call = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)
            try:
                with sdpa_kernel(backend):
                    time = microseconds([call])
            except Exception as error:
                print("failed", backend, type(error).__name__, str(error).splitlines()[0][:90])
                continue
            rate = 2 * tokens * (tokens + 1) * 32 * 128 / time / 1e6
            print(f"   1x{tokens:<6} {backend.name:16} {time:10.1f} us {rate:8.0f} TFLOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description="Attention kernels on a GPU.")
    parser.add_argument("--only", nargs="*", default=["decode", "prefill", "prefix", "sdpa"])
    parser.add_argument("--page-sizes", nargs="*", type=int, default=[16, 64, 128])
    parser.add_argument("--workers", type=int, default=12, help="processes that compile")
    args = parser.parse_args()
    print(torch.cuda.get_device_name(), torch.__version__)
    runs = grid(args.page_sizes, args.only)
    wanted = list({kernel(run): run for run in runs}.values())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        failed = {run: reason for run, reason in pool.map(compile_small, wanted) if reason}
    for run, reason in failed.items():
        print("failed to compile", *run, reason)
    check()
    measure([run for run in runs if run not in failed])
    if "sdpa" in args.only:
        sdpa()


if __name__ == "__main__":
    main()
