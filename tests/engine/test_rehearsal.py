"""No step and no request asks for a kernel that a rehearsal has not asked for, on tensors without memory."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("supported_triton")

from replayed_graphs import ReplayingRecorder, use_gpu_steps
from tiny_text import write_tiny_text_model
from ways import WAYS

import rootlet
from rootlet.cache.kv_cache import KVCache
from rootlet.cache.slot_tables import SlotTables
from rootlet.engine.build import parts
from rootlet.engine.build.backends import Backend, make_backend
from rootlet.engine.build.memory import make_stage
from rootlet.engine.build.resolved import Sizes
from rootlet.engine.config import EngineConfig
from rootlet.engine.steps import triton_planner
from rootlet.engine.steps.gpu_inputs import GpuInputs
from rootlet.engine.steps.graphs import decodes
from rootlet.engine.steps.graphs.decodes import DecodeGraphs
from rootlet.engine.steps.graphs.mixed import MixedGraphs
from rootlet.engine.steps.graphs.steps import StepGraphs
from rootlet.engine.steps.layout import StepLayout
from rootlet.engine.steps.rehearsal import draws
from rootlet.engine.steps.triton_planner import TritonPlanner
from rootlet.kernels import activation, device, norm, rotary
from rootlet.kernels.gpu import linear, long_prefill, prefix_groups
from rootlet.kernels.gpu.argmax import argmax
from rootlet.kernels.gpu.gemv import gemv as linear_gemv
from rootlet.kernels.gpu.jit import Kernel, collecting
from rootlet.kernels.gpu.slot_writes import write_runs
from rootlet.kernels.matrices import dense, packing
from rootlet.models.build import build_model
from rootlet.models.config import ModelConfig
from rootlet.models.loader import load_model
from rootlet.models.registry import resolve
from rootlet.sampling.sampler import Sampler

META = torch.device("meta")
# shapes of which one multiplies by cuBLAS, the other by kernels of our own, with layers of two sorts
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 32768,
}
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "num_hidden_layers": 2,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": True,
    "sliding_window": 512,
    "max_window_layers": 1,
}


class Found(dict):
    """Launches by variant."""

    def __call__(self, launch):
        self.setdefault(launch.variant, launch)


def named(variants):
    """Kernels by name, with what they are compiled for."""
    return [f"{kernel.__name__} {key}" for kernel, key in variants]


@pytest.fixture
def hopper(monkeypatch):
    """Tensors without memory stand for those of an H100."""
    for module in (device, long_prefill):
        monkeypatch.setattr(module, "capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)


def without_memory(config, *, deterministic=False):
    model = build_model(resolve(config.architectures), config, torch.bfloat16, META)
    if deterministic:
        model.use_batch_invariant_kernels()
    model.load_weights(
        (name, torch.empty(shape, dtype=torch.bfloat16, device=META))
        for name, shape in model.weight_shapes.items()
    )
    return model


def random_layout(rng, most_rows, most_tokens, context):
    """Any step: decodes, prompts, both; behind any contexts, with tokens drawn where the scheduler may."""
    num_decodes = rng.choice([0, rng.randrange(1, 8), rng.randrange(1, most_rows + 1)])
    counts = [1] * num_decodes
    room = most_tokens
    for _ in range(rng.choice([0, 1, 1, 3, 20]) if num_decodes else rng.randrange(1, 4)):
        count = min(room, context // 2, 2 + int(2 ** rng.uniform(0, 13)))
        if count > 1 and len(counts) < most_rows:
            counts.append(count)
            room -= count
    counts = np.array(counts, dtype=np.int32)
    starts = np.array([rng.randrange(context - count) for count in counts], dtype=np.int32)
    num_shared = rng.choice([0, 0, 40])
    tables = [[0] * num_shared or [row] for row in range(len(counts))]
    if num_shared:
        starts = np.maximum(starts, 64 * num_shared)
        starts = np.minimum(starts, context - counts)
    return replace(
        StepLayout.padding(len(counts), 1),
        starts=starts.astype(np.int32),
        counts=counts,
        samples=np.array([count == 1 or rng.random() < 0.5 for count in counts], dtype=np.int32),
        num_decodes=num_decodes,
        only_decodes=len(counts) == num_decodes,
        page_tables=tables,
    )


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("config", [LLAMA, QWEN], ids=["llama", "qwen2"])
@pytest.mark.parametrize(
    "options", [{}, {"deterministic": True}, {"page_size": 16, "context_length": 700}], ids=str
)
def test_no_step_has_a_kernel_of_its_own(config, options):
    """Launched kernel by kernel and as recorded, steps of any rows reach what the rehearsal reaches."""
    model_config = ModelConfig.from_dict(config)
    model = without_memory(model_config, deterministic=options.get("deterministic", False))
    engine_config = EngineConfig(model_path="none", **options)
    backend = make_backend("triton", engine_config, model, torch.device("cuda"))
    sizes = Sizes.resolve(engine_config, model_config, on_gpu=True)
    rehearsed, reached = Found(), Found()
    stage = make_stage(sizes, backend, model, META, vocab_size=model_config.vocab_size, embeds=False)
    with collecting(rehearsed):
        stage.run_all()

    kv = KVCache(model.kv_spec(sizes.page_size), 3, META)
    most_rows, most_tokens = sizes.max_running_requests, sizes.num_prefill_tokens
    tables = SlotTables(most_rows + 1, sizes.context_length - 7, sizes.page_size, META, write_runs)
    inputs = backend.make_inputs(tables, kv.spec)
    recorder = ReplayingRecorder()
    graphs = StepGraphs(
        DecodeGraphs(model, kv, inputs, recorder, most_rows),
        MixedGraphs(model, kv, inputs, recorder, most_tokens, most_rows),
        recorder,
    )
    rng = random.Random(5)
    with torch.inference_mode(), collecting(reached):
        for _ in range(40):
            layout = random_layout(rng, most_rows, most_tokens, sizes.context_length - 7)
            step = inputs.build(layout, all_states=rng.random() < 0.3)
            hidden = step.sampled.states(model.forward(step.forward, kv))
            model.compute_logits(hidden[: rng.randrange(1, 300)])
            graphs.replay(layout)
            if layout.only_decodes:
                graphs.replay_greedy(layout)
    names = {kernel.__name__ for kernel, _ in reached}
    assert names >= ({"_gemm_kernel"} if options.get("deterministic") else {"_gemv_kernel", "_prefix_kernel"})
    assert named(reached.keys() - rehearsed.keys()) == []


PREFIX = [11 * i % 280 + 3 for i in range(140)]
ONE_LAYER = '{"num_hidden_layers": 1}'
PARAMS = [
    *WAYS,
    {"temperature": 1, "seed": 1, "regex": "[ab]{2,4}"},
    {"temperature": 0, "regex": "[ab]{2,4}"},
]


@pytest.fixture
def launched(monkeypatch):
    """The variants launched, or handed over, so far; CPU tensors are computed on by the GPU's kernels."""
    variants = set()
    get = Kernel.__getitem__

    def watched(kernel, grid):
        launch = get(kernel, grid)

        def run(*args, **options):
            variants.add((kernel, kernel.variant(args, options)))
            return launch(*args, **options)

        return run

    def gemv(product, weight, **options):  # interpreted it would take most of the time
        with collecting(lambda launch: variants.add(launch.variant)):
            linear_gemv(product, weight, **options)
        return product.reference(weight)

    monkeypatch.setattr(Kernel, "__getitem__", watched)
    monkeypatch.setattr(linear, "gemv", gemv)
    use_gpu_steps(monkeypatch)
    monkeypatch.setattr(parts, "make_backend", lambda *_: backend())
    monkeypatch.setattr(triton_planner, "num_decode_splits", lambda count, _: 2 if count < 3 else 1)
    monkeypatch.setattr(decodes, "argmax", argmax)
    monkeypatch.setattr(prefix_groups, "LAUNCH_TOKENS", 0)
    monkeypatch.setattr(parts, "Sampler", partial(Sampler, fused=True))
    monkeypatch.setattr(parts, "_table_writer", lambda _: write_runs)
    monkeypatch.setattr(packing, "is_multiplied_in_c", lambda _: False)
    for module in (activation, dense, norm, rotary):
        monkeypatch.setattr(module, "on_gpu", lambda tensor: True)
    return variants


def backend():
    return Backend("triton", GpuInputs, partial(TritonPlanner, share_prefixes=True), can_record=True)


def rehearse(folder):
    """On tensors without memory, as of the model in that folder."""
    made = []
    load_model(
        folder,
        device="cpu",
        dtype="float32",
        load_format="dummy",
        json_model_override_args=ONE_LAYER,
        before_weights=lambda *given: made.extend(given),
    )
    config, make_model = made
    sizes = Sizes.resolve(EngineConfig(model_path=folder, page_size=16), config, on_gpu=True)
    stage = make_stage(sizes, backend(), make_model(), META, vocab_size=config.vocab_size, embeds=False)
    with collecting(lambda _: None):
        stage.run_all()


def serve(folder, variants):
    """Requests of every kind, alone and together, with pages that are copied, chunks and a shared prefix."""
    with rootlet.Engine(
        folder, load_format="dummy", device="cpu", dtype="float32", page_size=16, max_total_tokens=2048,
        chunked_prefill_size=64, max_running_requests=8, disable_overlap_schedule=False,
        json_model_override_args=ONE_LAYER,
    ) as engine:  # fmt: skip
        variants.clear()  # from here on they are those of requests

        def generate(prompts, params, **more):
            params = [{"max_new_tokens": 2, "ignore_eos": True} | one for one in params]
            engine.generate(input_ids=prompts, sampling_params=params, **more)

        for first in range(0, len(PARAMS), 6):  # six at a time, then each by itself
            params = PARAMS[first : first + 6]
            generate(
                [[5, 6, 7 + i] for i in range(len(params))], params, return_logprob=True, top_logprobs_num=2
            )
        for params in (PARAMS[1], PARAMS[5], PARAMS[-1]):
            generate([[5, 6, 7]], [params])
        for of in ("sampled", "tempered", "raw"):
            masks = [params.get("top_k", 0) > 0 for params in PARAMS[:3]]
            prompts = [[5, 6, 7]] * 3
            generate(prompts, PARAMS[:3], return_logprob=True, logprobs_of=of, return_sampling_mask=masks)
        generate([[9] * 5], PARAMS[:1], return_logprob=True, logprob_start_len=0, return_hidden_states=True)
        generate([[*PREFIX, i, 2 * i] for i in range(3)], [{"temperature": 0}] * 3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # padding means nothing: it may overflow
def test_no_request_has_a_kernel_of_its_own(tmp_path, launched):
    folder = write_tiny_text_model(tmp_path)
    rehearse(folder)
    rehearsed = set(launched)
    serve(folder, launched)
    assert {kernel.__name__ for kernel, _ in launched} >= {
        "_argmax_kernel", "_choose", "_count_tokens", "_decode_kernel", "_gemv_kernel", "_mask", "_pack",
        "_move_pages_kernel", "_prefill_kernel", "_prefix_kernel", "_rank", "_score", "_write_runs_kernel",
    }  # fmt: skip
    assert named(launched - rehearsed) == []


def test_an_option_that_is_not_rehearsed_is_missed(monkeypatch):
    """The sampler's kernels are reached by options, one for one."""
    whole, less = Found(), Found()
    with collecting(whole):
        draws.draw_without_model(1000, META)
    monkeypatch.setattr(draws, "_IN_KERNELS", draws._IN_KERNELS[1:])
    with collecting(less):
        draws.draw_without_model(1000, META)
    missed = {kernel.__name__ for kernel, _ in whole.keys() - less.keys()}
    assert missed == {"_choose", "_gather", "_probabilities", "_survey"}
