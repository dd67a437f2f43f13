"""The small GPU kernels one by one: correct or not, microseconds and GB/s in a CUDA graph.

    python benchmarks/gpu_kernels.py [--only correct|products|step|rows] [--rows 1,256] [--models L8B]

`products` tries configurations of each linear layer of Llama-3.1-8B (L8B) and Qwen2.5-0.5B (Q05B) over
rotating copies of the weights, several times the L2 cache in all, next to torch; `step` runs all linear
layers, norms and activations of a decode step; `rows` is everything else. GB/s counts what an operation
must read and write. Worker processes compile the kernels beforehand, into Triton's cache. About a minute.
"""

from __future__ import annotations

import argparse
import itertools
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
from rootlet.kernels.gpu import gemm as gpu_gemm
from rootlet.kernels.gpu import gemv as gpu_gemv
from rootlet.kernels.gpu import norm as gpu_norm
from rootlet.kernels.gpu import page_copy, step_inputs
from rootlet.kernels.gpu import rotary as gpu_rotary
from rootlet.kernels.gpu.gemm import GemmConfig
from rootlet.kernels.gpu.gemv import GemvConfig
from rootlet.kernels.norm import NormWeight
from rootlet.kernels.products import Product

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

GEMM_CONFIGS = [  # (block_m, block_n, block_k, warps, stages)
    (64, 32, 64, 4, 5),
    (64, 32, 128, 4, 4),
    (64, 64, 64, 4, 5),
    (64, 64, 128, 4, 3),
    (64, 64, 128, 4, 4),
    (64, 128, 64, 4, 4),
    (64, 128, 128, 4, 3),
    (128, 32, 64, 4, 5),
    (128, 32, 128, 4, 4),
    (128, 64, 64, 4, 4),
    (128, 64, 128, 4, 3),
    (128, 64, 64, 8, 4),
    (128, 128, 64, 4, 3),
    (128, 128, 64, 8, 4),
    (128, 256, 64, 8, 3),
    (256, 32, 64, 8, 4),
    (256, 64, 64, 8, 4),
    (256, 64, 128, 8, 3),
    (128, 128, 128, 8, 3),
    (64, 256, 64, 8, 3),
]


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


def layer_product(x, fused: str, norm_weight, residual) -> Product:
    """A linear layer as a step runs it: gated or added to the residual; of few rows, with its norm."""
    if fused == "residual":
        return Product(x, residual=residual)
    activation = "silu" if fused == "gated" else None
    norm = NormWeight(norm_weight, 1e-5) if len(x) <= gpu_gemv.MAX_ROWS else None
    return Product(x, norm=norm, activation=activation)


def apart(product: Product, weight: torch.Tensor) -> torch.Tensor:
    """The same through cuBLAS, and our kernels for what is around it."""
    x = product.x if product.norm is None else gpu_norm.rms_norm(product.x, *product.norm, pdl=True)
    if product.residual is not None:
        return product.residual.addmm_(x, weight.t())
    result = F.linear(x, weight)
    return result if product.activation is None else gpu_activation.silu_and_mul(result, pdl=True)


def gemv_configs(m: int, k: int, fused: str) -> list[GemvConfig]:
    """Those of CONFIGS whose sums fit into the registers: M rows of x hold M of them per weight."""
    room = 128 // (m * (2 if fused == "gated" else 1))
    wide = [(1, 1024, 4), (2, 1024, 4), (1, 1024, 8), (1, 512, 2), (2, 512, 2)] if m > 1 else []
    return [GemvConfig(*each) for each in CONFIGS[k] + wide if each[0] * each[1] <= room * 32 * each[2]]


def gemm_configs(m: int, fused: str) -> list[GemmConfig]:
    """Those of GEMM_CONFIGS that have no more rows than x, and whose sums and tiles fit."""
    found = []
    for tma in (False, True):
        for block_m, block_n, block_k, warps, stages in GEMM_CONFIGS:
            sums = block_m * block_n * (2 if fused == "gated" else 1) / (32 * warps)
            tiles = (block_m + block_n * (2 if fused == "gated" else 1)) * block_k * 2 * stages
            if block_m <= max(m, 64) and sums <= 128 and tiles <= 220_000:
                found.append(GemmConfig(block_m, block_n, block_k, warps, stages, tma))
    return found


def variants(m: int, k: int, fused: str) -> Iterator[tuple[bool, object, bool]]:
    """What the sweep tries for a layer: (whether with gemm, configuration, pdl)."""
    few = m <= gpu_gemv.MAX_ROWS
    for config in gemv_configs(m, k, fused) if few else gemm_configs(m, fused):
        for pdl in (False, True) if few else (True,):
            yield not few, config, pdl


def run_variant(
    product: Product, weight: torch.Tensor, with_gemm: bool, config: object, pdl: bool
) -> torch.Tensor:
    """Run the product as the variant says."""
    return (gpu_gemm.gemm if with_gemm else gpu_gemv.gemv)(product, weight, config=config, pdl=pdl)


def layers_of(model: str, m: int) -> dict[str, tuple[int, int, str]]:
    """The linear layers that our kernels may run; of many rows the output layer is cuBLAS's."""
    shapes = LAYERS[model][1]
    few = m <= gpu_gemv.MAX_ROWS
    return {name: shape for name, shape in shapes.items() if few or name != "lm_head"}


def jobs(m: int, models: list[str]) -> Iterator[tuple]:
    """(M, N, K, what is fused, variant) of everything that the sweep runs, once per kernel."""
    seen = set()
    for model in models:
        for n, k, fused in layers_of(model, m).values():
            for variant in variants(m, k, fused):
                if (k, fused, variant) not in seen:
                    seen.add((k, fused, variant))
                    yield m, n, k, fused, variant


def compile_job(job) -> str | None:
    """Compile one configuration by running it; what went wrong, if anything."""
    m, n, k, fused, variant = job
    try:
        weight = torch.zeros((n, k), device="cuda", dtype=DTYPE)
        run_variant(layer_product(randn(m, k), fused, randn(k), randn(m, n)), weight, *variant)
        torch.cuda.synchronize()
    except Exception as error:
        return f"{job}: {type(error).__name__}: {error}"
    return None


def sweep(rows: list[int], models: list[str], workers: int, shown: int = 4) -> None:
    """Configurations of every linear layer, the fastest ``shown`` of them, beside torch."""
    todo = [job for m in rows for job in jobs(m, models)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for problem in pool.map(compile_job, todo, chunksize=4):
            if problem:
                print("FAILED TO RUN", problem[:300])
    for model in models:
        layers, _ = LAYERS[model]
        for m in rows:
            shapes = layers_of(model, m)
            sums = {"torch": 0.0, "apart": 0.0, "best": 0.0}
            for name, (n, k, fused) in shapes.items():
                nbytes = n * k * DTYPE.itemsize
                copies = max(2, -int(-ROTATION // nbytes))
                weights, x = [randn(n, k) for _ in range(copies)], randn(m, k)
                residual = torch.zeros(m, n, device="cuda", dtype=DTYPE)
                turns = [weights[i % copies] for i in range(max(copies, 20))]
                products = [(layer_product(x, fused, randn(k), residual), weight) for weight in turns]
                product_alone = [partial(F.linear, x, weight) for weight in turns]
                results = [
                    ("torch, the product alone", graph_time(product_alone)),
                    ("torch, the rest by our kernels", graph_time([partial(apart, *p) for p in products])),
                ]
                tried = []
                for variant in variants(m, k, fused):
                    try:
                        us = graph_time([partial(run_variant, *p, *variant) for p in products])
                    except Exception as error:
                        print(f"{variant} FAILED: {str(error)[:200]}")
                        continue
                    tried.append((" ".join(map(str, variant)), us))
                results += sorted(tried, key=lambda result: result[1])[:shown]
                for label, us in results:
                    rate = nbytes / us / 1000
                    print(f"{model} M={m:<4} {name:8} {label:100} {us:8.2f} us {rate:6.0f} GB/s")
                times = 1 if name == "lm_head" else layers
                for key, (_, us) in zip(sums, results):
                    sums[key] += us * times / 1000
                del weights, turns, products, product_alone
            print(f"{model} M={m} sum over a decode step, ms:", {k: round(ms, 3) for k, ms in sums.items()})


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
        norm, residual = NormWeight(self.norm_weight, 1e-5), self.residual
        run = gpu_gemv.gemv if len(residual) <= gpu_gemv.MAX_ROWS else gpu_gemm.gemm
        for index in range(self.layers):
            part = self.held[index % len(self.held)]
            run(Product(residual, self.bias, norm=norm), part["qkv"], pdl=pdl)
            run(Product(self.attended, residual=residual), part["o"], pdl=pdl)
            act = run(Product(residual, norm=norm, activation="silu"), part["gate_up"], pdl=pdl)
            run(Product(act, residual=residual), part["down"], pdl=pdl)
        run(Product(residual, norm=norm, out_dtype=torch.float32), self.head, pdl=pdl)

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


def whole_steps(rows: list[int], models: list[str]) -> None:
    for model, m in itertools.product(models, rows):
        step = Step(model, m)
        for label, call in (
            ("torch linear, norm and activation apart", partial(step.apart, F.linear)),
            ("the same, norm and activation with pdl", partial(step.apart, F.linear, True)),
            ("everything fused", partial(step.fused, False)),
            ("everything fused, pdl", partial(step.fused, True)),
        ):
            print(f"{model} M={m} step without attention, {label:40} {graph_time([call]) / 1000:8.3f} ms")
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
    for m in (1, 3, 8, 100):
        for model, (_, shapes) in LAYERS.items():
            for name, (n, k, fused) in shapes.items():
                n = min(n, 30000)
                x, weight = randn(m, k), randn(n, k) * k**-0.5
                for pdl in (False, True):
                    product = layer_product(x, fused, torch.ones_like(x[0]), torch.zeros(m, n).to(x))
                    kernel = gpu_gemv.gemv if m <= gpu_gemv.MAX_ROWS else gpu_gemm.gemm
                    actual = kernel(product, weight, pdl=pdl).clone()
                    if product.residual is not None:
                        product.residual.zero_()
                    label = f"{model} {name} M={m} pdl={pdl}"
                    report(label, [actual], [product.reference(weight)], limit)
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
    data = torch.zeros(64, 256, 16, 8, 128, device="cuda", dtype=DTYPE)
    for count in (1, 16):
        ids = torch.randperm(256, device="cuda", dtype=torch.int32)
        call = partial(page_copy.copy_pages, data, ids[:count], ids[-count:])
        line(f"copy_pages n={count}", call, 4 * count * data.nbytes / 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=("correct", "products", "step", "rows"))
    parser.add_argument("--workers", type=int, default=8, help="processes that compile kernels beforehand")
    parser.add_argument(
        "--rows",
        default="1",
        help="rows of x in the linear layers: up to 8 by gemv, more by gemm; for example 1,256",
    )
    parser.add_argument("--models", default=",".join(LAYERS), help="whose linear layers, for example L8B")
    args = parser.parse_args()
    rows, models = [int(each) for each in args.rows.split(",")], args.models.split(",")
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for name, part in (
        ("correct", correctness),
        ("products", partial(sweep, rows, models, args.workers)),
        ("step", partial(whole_steps, rows, models)),
        ("rows", rowwise),
    ):
        if args.only in (None, name):
            part()


if __name__ == "__main__":
    main()
