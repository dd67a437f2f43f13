"""The CPU kernels one by one: time, GB/s, GFLOP/s, and the speedup over their torch references.

    python benchmarks/cpu_kernels.py [--threads N] [--dtype bf16|fp32] [--only attention]

Shapes are those of SmolLM2-135M (9 query and 3 kv heads of 64) and of a Llama of 3 billion (24 and 8
of 128). GB/s counts what an operation must read and write at least, GFLOP/s its multiply-adds twice.
Each figure is the best of several rounds; run it on an otherwise idle machine: about a minute.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from rootlet.kernels import activation, attention, embedding, native, norm, rotary
from rootlet.kernels.attention import PagedAttentionPlan
from rootlet.kernels.scoring import Scoring
from rootlet.kernels.threads import Team

PAGE_SIZE = 16
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ROUND = 0.05  # seconds


@dataclass(frozen=True)
class Work:
    """One measurement: the kernel, its reference, and what it moves and computes."""

    name: str
    run: Callable[[], object]
    reference: Callable[[], object]
    nbytes: int
    flops: int = 0


def best_time(run: Callable[[], object], rounds: int) -> float:
    """Return the least seconds per call over rounds of about ``ROUND`` seconds each."""
    run()
    start = time.perf_counter()
    run()
    calls = max(1, int(ROUND / (time.perf_counter() - start)))
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def rowwise(hidden: int, inner: int, dtype: torch.dtype) -> Iterator[Work]:
    """Norm, activation and embedding for one token and for many."""
    size = dtype.itemsize
    weight, table = torch.randn(hidden).to(dtype), torch.randn(32_000, hidden).to(dtype)
    for tokens in (1, 1024):
        x, residual = torch.randn(tokens, hidden).to(dtype), torch.zeros(tokens, hidden, dtype=dtype)
        gate_up = torch.randn(tokens, 2 * inner).to(dtype)
        ids = torch.randint(0, 32_000, (tokens,))
        args = (x, residual, weight, 1e-5)
        yield Work(
            f"add_rms_norm [{tokens}, {hidden}]",
            partial(norm.add_rms_norm, *args),
            partial(norm.add_rms_norm_reference, *args),
            4 * x.numel() * size,
        )
        yield Work(
            f"silu_and_mul [{tokens}, 2 x {inner}]",
            partial(activation.silu_and_mul, gate_up),
            partial(activation.silu_and_mul_reference, gate_up),
            3 * tokens * inner * size,
        )
        yield Work(
            f"embed [{tokens}, {hidden}]",
            partial(embedding.embed, ids, table),
            partial(embedding.embed_reference, ids, table),
            2 * x.numel() * size,
        )


def rotary_work(heads: tuple[int, int, int], dtype: torch.dtype) -> Iterator[Work]:
    """Rotary embedding and store for one token and for many."""
    num_q, num_kv, dim = heads
    for tokens in (1, 1024):
        qkv = torch.randn(tokens, (num_q + 2 * num_kv) * dim).to(dtype)
        positions = torch.arange(tokens)
        caches = torch.zeros(2, tokens // PAGE_SIZE + 1, PAGE_SIZE, num_kv, dim, dtype=dtype)
        args = (qkv, torch.randn(tokens, dim), positions, positions, *caches, num_q)
        yield Work(
            f"rotary_and_store [{tokens}, {num_q}+2x{num_kv} x {dim}]",
            partial(rotary.rotary_and_store, *args),
            partial(rotary.rotary_and_store_reference, *args),
            2 * qkv.numel() * qkv.element_size(),
        )


def attention_work(heads: tuple[int, int, int], dtype: torch.dtype) -> Iterator[Work]:
    """Prefill of a prompt, a chunk behind a prefix, and decode of one and of many rows."""
    num_q, num_kv, dim = heads
    for rows, tokens, context in ((1, 2000, 2000), (1, 256, 4000), (1, 1, 100), (1, 1, 4000), (64, 1, 1000)):
        pages = -(-context // PAGE_SIZE)
        plan = PagedAttentionPlan(
            page_table=(1 + torch.randperm(rows * pages)).int().view(rows, pages),
            q_starts=torch.arange(0, rows * tokens + 1, tokens, dtype=torch.int32),
            kv_lens=torch.full((rows,), context, dtype=torch.int32),
            page_size=PAGE_SIZE,
            max_q=tokens,
            max_kv=context,
        )
        caches = torch.randn(2, rows * pages + 1, PAGE_SIZE, num_kv, dim).to(dtype)
        q = torch.randn(rows * tokens, num_q, dim).to(dtype)
        args = (q, *caches, plan, Scoring(dim**-0.5))
        pairs = rows * sum(range(context - tokens + 1, context + 1))
        yield Work(
            f"attention {num_q}/{num_kv} x {dim}: {rows} x {tokens} of {context}",
            partial(attention.paged_attention, *args),
            partial(attention.paged_attention_reference, *args),
            (2 * rows * context * num_kv * dim + 2 * q.numel()) * dtype.itemsize,
            4 * pairs * num_q * dim,
        )


def all_work(dtype: torch.dtype) -> Iterator[Work]:
    """Every measurement, made when it is its turn."""
    for heads, hidden, inner in (((9, 3, 64), 576, 1536), ((24, 8, 128), 3072, 8192)):
        yield from rowwise(hidden, inner, dtype)
        yield from rotary_work(heads, dtype)
        yield from attention_work(heads, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--only", default="", help="measure only names that contain this")
    options = parser.parse_args()
    print(
        f"kernels {native.describe()}, {options.threads} threads, {options.dtype}, torch {torch.__version__}"
    )
    print(f"{'':48}{'time':>12}{'GB/s':>8}{'GFLOP/s':>9}{'x torch':>9}")
    with torch.inference_mode(), Team(options.threads).bound():
        for work in all_work(DTYPES[options.dtype]):
            if options.only in work.name:
                seconds, slow = best_time(work.run, 7), best_time(work.reference, 2)
                flops = f"{work.flops / seconds / 1e9:9.1f}" if work.flops else f"{'':9}"
                rate = work.nbytes / seconds / 1e9
                print(f"{work.name:48}{seconds * 1e6:9.1f} us{rate:8.1f}{flops}{slow / seconds:9.1f}")


if __name__ == "__main__":
    main()
