"""The small GPU kernels one by one: correct or not, microseconds and GB/s in a CUDA graph.

    python benchmarks/gpu_kernels.py [--only correct|gemv|step|rows] [--workers 8] [--rows M]

`gemv` tries configurations of each linear layer of Llama-3.1-8B (L8B) and Qwen2.5-0.5B (Q05B) over rotating
copies of the weights, several times the L2 cache in all, next to torch; `step` runs all linear layers, norms
and activations of a decode step; `rows` is everything else. GB/s counts what an operation must read and
write. Worker processes compile the kernels beforehand, into Triton's cache. About a minute on one GPU.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
import torch.nn.functional as F

from rootlet.kernels import activation, norm, rotary
from rootlet.kernels.gpu import activation as gpu_activation
from rootlet.kernels.gpu import argmax as gpu_argmax
from rootlet.kernels.gpu import gemv as gpu_gemv
from rootlet.kernels.gpu import norm as gpu_norm
from rootlet.kernels.gpu import page_copy, step_inputs
from rootlet.kernels.gpu import rotary as gpu_rotary

DTYPE = torch.bfloat16
ROTATION = 300e6  # bytes of weight copies in turn: several L2 caches
LAYERS = {  # model: (layers, {name: (N, K, what is fused with it)})
    "L8B": (
        32,
        {
            "qkv": (6144, 4096, "norm"),
            "o": (4096, 4096, "residual"),
            "gate_up": (28672, 4096, "gated"),
            "down": (4096, 14336, "residual"),
            "lm_head": (128256, 4096, "norm"),
        },
    ),
    "Q05B": (
        24,
        {
            "qkv": (1152, 896, "norm"),
            "o": (896, 896, "residual"),
            "gate_up": (9728, 896, "gated"),
            "down": (896, 4864, "residual"),
            "lm_head": (151936, 896, "norm"),
        },
    ),
}
CONFIGS = {  # K: (rows, block_k, warps)
    4096: [(1, 2048, 2), (1, 4096, 4), (2, 2048, 4), (2, 4096, 8), (4, 1024, 4), (4, 2048, 8)],
    14336: [(1, 2048, 2), (1, 2048, 4), (2, 2048, 4), (1, 4096, 4), (2, 4096, 8), (4, 1024, 4)],
    896: [(1, 1024, 1), (2, 1024, 2), (4, 1024, 4), (8, 1024, 4), (1, 256, 1), (4, 512, 2)],
    4864: [(1, 1024, 2), (1, 1024, 4), (2, 1024, 4), (1, 2048, 4), (1, 8192, 8), (4, 512, 2)],
}


def graph_time(calls: list[Callable[[], object]], repeats: int = 7) -> float:
    """Median microseconds per call of the calls captured one after the other in a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    times = []
    for _ in range(repeats + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / len(calls))
    return statistics.median(times[1:])


def randn(*shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def layer_call(x, weight, fused: str, norm_weight, residual, config=(None, None, None), pdl=False):
    """A linear layer as a decode step runs it: after its norm, gated, or added to the residual."""
    options = dict(zip(("rows", "block_k", "num_warps"), config), pdl=pdl)
    if fused == "residual":
        return gpu_gemv.gemv(x, weight, residual=residual, **options)
    if fused == "gated":
        return gpu_gemv.norm_gemv_gated(None, x, norm_weight, 1e-5, weight, "silu", **options)
    return gpu_gemv.norm_gemv(None, x, norm_weight, 1e-5, weight, **options)


def configs(m: int, k: int, fused: str) -> list[tuple[int, int, int]]:
    """Those of CONFIGS whose sums fit into the registers: M rows of x hold M of them per weight."""
    room = 128 // (m * (2 if fused == "gated" else 1))
    wide = [(1, 1024, 4), (2, 1024, 4), (1, 1024, 8), (1, 512, 2), (2, 512, 2)] if m > 1 else []
    return [config for config in CONFIGS[k] + wide if config[0] * config[1] <= room * 32 * config[2]]


def jobs(m: int) -> Iterator[tuple[int, int, int, str, tuple[int, int, int], bool]]:
    """(M, N, K, what is fused, configuration, pdl) of everything that the sweep runs, once per kernel."""
    seen = set()
    for _, shapes in LAYERS.values():
        for n, k, fused in shapes.values():
            for config in configs(m, k, fused):
                for pdl in (False, True):
                    if (k, fused, config, pdl) not in seen:
                        seen.add((k, fused, config, pdl))
                        yield m, n, k, fused, config, pdl


def compile_job(job) -> str | None:
    """Compile one configuration by running it; what went wrong, if anything."""
    m, n, k, fused, config, pdl = job
    try:
        weight = torch.zeros((n, k), device="cuda", dtype=DTYPE)
        layer_call(randn(m, k), weight, fused, randn(k), randn(m, n), config, pdl)
        torch.cuda.synchronize()
    except Exception as error:
        return f"{job}: {type(error).__name__}: {error}"
    return None


def gemv_sweep(m: int, workers: int) -> None:
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for problem in pool.map(compile_job, jobs(m), chunksize=4):
            if problem:
                print("FAILED TO RUN", problem)
    for model, (layers, shapes) in LAYERS.items():
        sums = {"torch": 0.0, "best": 0.0, "best pdl": 0.0, "default pdl": 0.0}
        for name, (n, k, fused) in shapes.items():
            nbytes = n * k * DTYPE.itemsize
            copies = max(2, -int(-ROTATION // nbytes))
            weights, x = [randn(n, k) for _ in range(copies)], randn(m, k)
            run = partial(layer_call, fused=fused, norm_weight=randn(k), residual=randn(m, n))
            turns = [weights[i % copies] for i in range(max(copies, 20))]

            def line(label: str, us: float, name=name, model=model, nbytes=nbytes) -> None:
                print(f"{model} {name:8} {label:34} {us:8.2f} us {nbytes / us / 1000:7.0f} GB/s")

            if m == 1:
                reference = graph_time([partial(torch.mv, weight, x[0]) for weight in turns])
            else:
                reference = graph_time([partial(F.linear, x, weight) for weight in turns])
            line("torch, the product alone", reference)
            gated = fused == "gated"
            best: dict[bool, tuple[float, object]] = {}
            for pdl in (False, True):
                default = graph_time([partial(run, x, w, pdl=pdl) for w in turns])
                line(f"default {gpu_gemv.configuration(n // (1 + gated), k, m, gated)} pdl={pdl}", default)
                for config in configs(m, k, fused):
                    try:
                        us = graph_time([partial(run, x, w, config=config, pdl=pdl) for w in turns])
                    except Exception as error:
                        print(f"{config} pdl={pdl} FAILED: {error}")
                        continue
                    line(f"{config} pdl={pdl}", us)
                    best[pdl] = min(best.get(pdl, (1e9, None)), (us, config))
            for pdl, (us, config) in best.items():
                line(f"BEST {config} pdl={pdl}", us)
            times = 1 if name == "lm_head" else layers
            for key, us in zip(sums, (reference, best[False][0], best[True][0], default)):
                sums[key] += us * times / 1000
            del weights, turns
        print(f"{model} sum over a decode step, ms:", {key: round(ms, 3) for key, ms in sums.items()})


class Step:
    """The linear layers, norms and activations of a decode step, over a few layers' weights in turn."""

    def __init__(self, model: str, m: int, held: int = 4) -> None:
        self.layers, shapes = LAYERS[model]
        layer = sum(n * k for name, (n, k, _) in shapes.items() if name != "lm_head") * DTYPE.itemsize
        held = max(held, int(ROTATION / layer))
        self.held = [
            {name: randn(n, k) * k**-0.5 for name, (n, k, _) in shapes.items() if name != "lm_head"}
            for _ in range(held)
        ]
        n, k, _ = shapes["lm_head"]
        self.head, self.norm_weight = randn(n, k), torch.ones(k, device="cuda", dtype=DTYPE)
        self.bias = randn(shapes["qkv"][0]) if model == "Q05B" else None
        self.residual, self.attended = randn(m, k), randn(m, shapes["o"][1])

    def fused(self, pdl: bool) -> None:
        norm_weight, residual = self.norm_weight, self.residual
        for index in range(self.layers):
            part = self.held[index % len(self.held)]
            gpu_gemv.norm_gemv(None, residual, norm_weight, 1e-5, part["qkv"], self.bias, pdl=pdl)
            gpu_gemv.gemv(self.attended, part["o"], residual=residual, pdl=pdl)
            act, _ = gpu_gemv.norm_gemv_gated(
                None, residual, norm_weight, 1e-5, part["gate_up"], "silu", pdl=pdl
            )
            gpu_gemv.gemv(act, part["down"], residual=residual, pdl=pdl)
        gpu_gemv.norm_gemv(None, residual, norm_weight, 1e-5, self.head, None, torch.float32, pdl=pdl)

    def apart(self, linear: Callable[..., torch.Tensor], pdl: bool = False) -> None:
        norm_weight, branch = self.norm_weight, self.attended[:, : self.residual.shape[1]].clone()
        for index in range(self.layers):
            part = self.held[index % len(self.held)]
            x = gpu_norm.add_rms_norm(branch, self.residual, norm_weight, 1e-5, pdl=pdl)
            linear(x, part["qkv"], self.bias)
            branch = linear(self.attended, part["o"])
            x = gpu_norm.add_rms_norm(branch, self.residual, norm_weight, 1e-5, pdl=pdl)
            act = gpu_activation.silu_and_mul(linear(x, part["gate_up"]), pdl=pdl)
            branch = linear(act, part["down"])
        linear(gpu_norm.add_rms_norm(branch, self.residual, norm_weight, 1e-5, pdl=pdl), self.head)


def whole_steps(m: int) -> None:
    for model in LAYERS:
        step = Step(model, m)
        for label, call in (
            ("torch linear, norm and activation apart", partial(step.apart, F.linear)),
            ("gemv, norm and activation apart", partial(step.apart, gpu_gemv.gemv)),
            ("gemv apart, pdl", partial(step.apart, partial(gpu_gemv.gemv, pdl=True), True)),
            ("everything fused", partial(step.fused, False)),
            ("everything fused, pdl", partial(step.fused, True)),
        ):
            print(f"{model} step without attention, {label:40} {graph_time([call]) / 1000:8.3f} ms")
        del step


def report(name: str, actual, expected, tolerance: float) -> None:
    """One line: the largest error relative to the largest value."""
    worst = 0.0
    for a, b in zip(actual, expected):
        a, b = a.double(), b.double()
        worst = max(worst, ((a - b).abs().max() / b.abs().max().clamp_min(1e-9)).item())
    verdict = "ok" if worst <= tolerance else "WRONG"
    print(f"correct {name:40} {verdict:6} error {worst:.1e} (limit {tolerance:.0e})")


def correctness() -> None:
    limit = 2**-7
    for m in (1, 3, 8):
        for model, (_, shapes) in LAYERS.items():
            for name, (n, k, fused) in shapes.items():
                n = min(n, 30000)
                x, weight = randn(m, k), randn(n, k) * k**-0.5
                for pdl in (False, True):
                    label = f"{model} {name} M={m} pdl={pdl}"
                    if fused == "gated":
                        args = (None, x, torch.ones_like(x[0]), 1e-5, weight, "silu")
                        actual = gpu_gemv.norm_gemv_gated(*args, pdl=pdl)
                        report(label, actual, gpu_gemv.norm_gemv_gated_reference(*args), limit)
                    else:
                        actual = gpu_gemv.gemv(x, weight, pdl=pdl)
                        report(label, [actual], [gpu_gemv.gemv_reference(x, weight)], limit)
    for tokens in (1, 300):
        x, residual, weight = randn(tokens, 4096), randn(tokens, 4096), randn(4096)
        other = residual.clone()
        expected = norm.add_rms_norm_reference(x, other, weight, 1e-5)
        actual = gpu_norm.add_rms_norm(x, residual, weight, 1e-5)
        report(f"add_rms_norm T={tokens}", (actual, residual), (expected, other), limit)
        gate_up = randn(tokens, 2 * 14336)
        expected = activation.silu_and_mul_reference(gate_up)
        report(f"silu_and_mul T={tokens}", [gpu_activation.silu_and_mul(gate_up)], [expected], limit)
        args = rotary_args(tokens)
        expected = [t.clone() for t in (rotary.rotary_and_store_reference(*args), *args[4:6])]
        args[4].zero_(), args[5].zero_()
        report(f"rotary T={tokens}", (gpu_rotary.rotary_and_store(*args), *args[4:6]), expected, limit)
        logits = randn(tokens, 128256)
        report("argmax", [gpu_argmax.argmax(logits)], [gpu_argmax.argmax_reference(logits)], 0)


def rotary_args(tokens: int) -> tuple:
    qkv, cos_sin = randn(tokens, 48 * 128), randn(9000, 128, dtype=torch.float32)
    positions = torch.randint(0, 9000, (tokens,), device="cuda")
    slots = torch.randperm(1024 * 16, device="cuda")[:tokens]
    k, v = (torch.zeros(1024, 16, 8, 128, device="cuda", dtype=DTYPE) for _ in range(2))
    return qkv, cos_sin, positions, slots, k, v, 32


def rowwise() -> None:
    def line(name: str, call: Callable[[], object], nbytes: float) -> None:
        us = graph_time([call] * 20)
        print(f"{name:44} {us:9.2f} us {nbytes / us / 1000:7.0f} GB/s")

    for tokens in (1, 256, 8192):
        for hidden in (896, 4096):
            x, residual, weight = randn(tokens, hidden), randn(tokens, hidden), randn(hidden)
            for warps in (None, 4, 16):
                call = partial(gpu_norm.add_rms_norm, x, residual, weight, 1e-5, num_warps=warps)
                line(f"add_rms_norm [{tokens}, {hidden}] warps={warps}", call, 8 * x.numel())
        gate_up = randn(tokens, 2 * 14336)
        for block in (None, 512, 4096):
            call = partial(gpu_activation.silu_and_mul, gate_up, block=block)
            line(f"silu_and_mul [{tokens}, 2 x 14336] block={block}", call, 3 * gate_up.numel())
        args = rotary_args(tokens)
        for heads in (None, 2, 8, 32):
            call = partial(gpu_rotary.rotary_and_store, *args, heads=heads)
            line(f"rotary_and_store [{tokens}, 48 x 128] heads={heads}", call, 4 * args[0].numel())
        tables = torch.zeros(2, 1025, 8192, dtype=torch.int32, device="cuda")
        slots = torch.randint(1, 1025, (tokens,), dtype=torch.int32, device="cuda")
        positions = torch.randint(0, 8192, (tokens,), dtype=torch.int32, device="cuda")
        call = partial(step_inputs.prepare_step, *tables, slots, positions, 16)
        line(f"prepare_step T={tokens}", call, 32 * tokens)
        call = partial(step_inputs.store_tokens, tables[0], slots, positions, positions)
        line(f"store_tokens B={tokens}", call, 16 * tokens)
    for rows in (1, 8, 256, 1024):
        for dtype in (torch.float32, DTYPE):
            logits = randn(rows, 128256, dtype=dtype)
            for splits in (None, 1, 4, 16):
                if rows * (splits or 16) >= 8:
                    call = partial(gpu_argmax.argmax, logits, splits=splits)
                    line(f"argmax [{rows}, 128256] {dtype} splits={splits}", call, logits.nbytes)
            line(f"torch.argmax [{rows}, 128256] {dtype}", partial(torch.argmax, logits, -1), logits.nbytes)
    data = torch.zeros(2, 32, 256, 16, 8, 128, device="cuda", dtype=DTYPE)
    for count in (1, 16):
        ids = torch.randperm(256, device="cuda", dtype=torch.int32)
        call = partial(page_copy.copy_pages, data, ids[:count], ids[-count:])
        line(f"copy_pages n={count}", call, 4 * count * data.nbytes / 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=("correct", "gemv", "step", "rows"))
    parser.add_argument("--workers", type=int, default=8, help="processes that compile kernels beforehand")
    parser.add_argument("--rows", type=int, default=1, help="rows of x in the linear layers, 1 to 8")
    args = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for name, part in (
        ("correct", correctness),
        ("gemv", partial(gemv_sweep, args.rows, args.workers)),
        ("step", partial(whole_steps, args.rows)),
        ("rows", rowwise),
    ):
        if args.only in (None, name):
            part()


if __name__ == "__main__":
    main()
