"""Memory of a GPU that an engine gives away and takes back: bytes by the driver's count, graphs replayed."""

from __future__ import annotations

import gc
import json

import pytest
import torch

import rootlet
from rootlet.errors import ConfigError, DeviceMemoryError, InvalidRequestError, WeightsError
from rootlet.kernels.arena import Arena
from rootlet.kernels.cuda_driver import CudaDriver

from ..models.hf import build_hf, state_of
from .tiny import CONTEXT, build, generate, random_prompt, requests, saved

MIB, GIB = 2**20, 2**30
SLACK = 32 * MIB  # kernels of torch are loaded at their first use, and stay
PROMPTS = [random_prompt(length, seed) for seed, length in enumerate([1, 17, 130, 700])]
PARAMS = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
CASES = {
    "graphs": {},
    "eager": {"disable_cuda_graph": True},
    "bfloat16": {"dtype": "bfloat16"},
    "deterministic": {"deterministic": True},
}
LARGE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32_000,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved("llama-head-128", tmp_path_factory.mktemp("memory"))


def free() -> int:
    """Bytes that the driver could give anybody now."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def answers(engine):
    """Of prompts one by one, so that every step is the same each time; nothing is cached before."""
    engine.flush_cache()
    outputs = [
        engine.generate(input_ids=prompt, sampling_params=PARAMS, return_logprob=True, logprob_start_len=0)
        for prompt in PROMPTS
    ]
    return [(out.token_ids, out.input_token_logprobs, out.output_token_logprobs) for out in outputs]


def recordings(engine) -> dict:
    """Those of decodes and of mixed steps, by their keys."""
    graphs = engine._loop._core.runner._graphs
    if graphs is None:
        return {}
    mixed = {("mixed", *key): step for key, step in graphs._mixed._steps.items()}
    steps = {**graphs._decodes._steps, **mixed}
    return {key: step._recording for key, step in steps.items() if step.is_recorded}


def disturb(num_bytes: int) -> None:
    """Let somebody else have the memory and leave NaN in it."""
    rubbish = torch.full((max(num_bytes, MIB) // 4,), float("nan"), dtype=torch.float32, device="cuda")
    torch.cuda.synchronize()
    del rubbish
    torch.cuda.empty_cache()


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_twenty_cycles_change_nothing(folder, options):
    """Recordings stay, and find weights, cache and tables where they were."""
    with build(folder, enable_memory_saver=True, **options) as engine:
        answers(engine)
        expected = answers(engine)  # replayed, where steps are recorded
        together = generate(engine, *requests()) if "dtype" not in options else None
        recorded = recordings(engine)
        assert bool(recorded) == ("disable_cuda_graph" not in options)
        for _ in range(20):
            report = engine.release_memory(["weights", "kv_cache"], weights="host")
            assert report.held["weights"] == report.held["kv_cache"] == 0
            disturb(report.freed)
            engine.resume_memory()
            assert answers(engine) == expected
        assert recorded.items() <= recordings(engine).items()
        if together is not None:
            assert generate(engine, *requests()) == together


def test_twenty_cycles_of_everything(folder):
    """Recordings too are let go; weights are pushed, from the same values and from others."""
    old, new = (state_of(build_hf("Llama", seed, max_position_embeddings=CONTEXT)) for seed in (0, 1))
    with build(saved_other(folder, "old", 0), enable_memory_saver=True) as engine:
        expected = {id(old): (answers(engine), answers(engine))[1]}
        engine.update_weights(new)
        expected[id(new)] = (answers(engine), answers(engine))[1]
        assert expected[id(old)] != expected[id(new)]
        for cycle in range(20):
            weights = (old, new)[cycle % 2]
            report = engine.release_memory()
            assert sum(report.held.values()) == 0
            with pytest.raises(WeightsError, match="push weights"):
                engine.generate(input_ids=[5])
            disturb(report.freed)
            engine.resume_memory(["weights"])
            engine.update_weights(weights)
            with pytest.raises(InvalidRequestError, match="kv_cache is released"):
                engine.generate(input_ids=[5])
            engine.resume_memory()
            assert not recordings(engine)
            assert answers(engine) == expected[id(weights)]
            assert answers(engine) == expected[id(weights)]
            assert recordings(engine)


def saved_other(folder, name, seed):
    """A folder beside ``folder`` with the weights of a seed."""
    path = f"{folder}-{name}"
    build_hf("Llama", seed, max_position_embeddings=CONTEXT).save_pretrained(path)
    return path


def test_nearly_all_that_construction_took_is_given_back(tmp_path):
    """97 %, the CUDA context and cuBLAS' workspaces aside, which are there before; and all at the end."""
    (tmp_path / "config.json").write_text(json.dumps(LARGE))

    def large(**options):
        return rootlet.Engine(
            str(tmp_path), load_format="dummy", skip_tokenizer_init=True, device="cuda", **options
        )

    with large(kv_cache_bytes=GIB) as engine:
        engine.generate(input_ids=PROMPTS, sampling_params=PARAMS)
    del engine
    begin = free()
    engine = large(kv_cache_bytes=8 * GIB, enable_memory_saver=True)
    taken = begin - torch.cuda.mem_get_info()[0]
    assert taken > 9 * GIB
    first = engine.release_memory()
    freed = taken - (begin - torch.cuda.mem_get_info()[0])
    assert freed >= 0.97 * taken, f"{freed / GIB:.2f} of {taken / GIB:.2f} GiB, {first}"
    assert freed == pytest.approx(first.freed, abs=64 * MIB)
    engine.resume_memory()
    shapes = engine._loop._core.runner.model.weight_shapes
    engine.update_weights({name: torch.full(shape, 0.01) for name, shape in shapes.items()})
    for _ in range(3):  # with recorded steps and work buffers
        engine.generate(input_ids=PROMPTS * 40, sampling_params={**PARAMS, "top_p": 0.9})
    second = engine.release_memory()
    assert second.by_tag["cuda_graph"] > 0
    assert begin - torch.cuda.mem_get_info()[0] <= taken - freed + 128 * MIB
    engine.close()
    del engine
    assert begin - free() <= 128 * MIB


@pytest.mark.parametrize("released", [None, ["weights"], ["kv_cache"], []])
def test_an_engine_ends_also_while_its_memory_is_away(folder, released):
    with build(folder, enable_memory_saver=True) as engine:
        answers(engine)
    before = free()
    engine = build(folder, enable_memory_saver=True)
    answers(engine)
    engine.release_memory(released)
    engine.close()
    del engine
    assert before - free() <= SLACK


@pytest.mark.parametrize("weights", ["host", "discard"])
def test_memory_that_somebody_else_took_can_be_asked_for_again(folder, weights):
    with build(folder, enable_memory_saver=True, max_total_tokens=None, kv_cache_bytes=4 * GIB) as engine:
        values = {
            name: engine._loop._core.runner.model.get_weight(name).cpu()
            for name in engine._loop._core.runner.model.weight_shapes
        }
        answers(engine)
        expected = answers(engine)
        recorded = recordings(engine)
        engine.release_memory(["weights", "kv_cache"], weights=weights)
        hog = torch.empty(free() - 2 * GIB, dtype=torch.uint8, device="cuda")
        for _ in range(2):
            with pytest.raises(DeviceMemoryError, match="OUT_OF_MEMORY"):
                engine.resume_memory()
            assert engine._memory.released == {"kv_cache"}
            with pytest.raises((InvalidRequestError, WeightsError), match="resume_memory"):
                engine.generate(input_ids=[5])
        del hog  # it stays in torch's cache, from where resuming fetches it
        engine.resume_memory()
        if weights == "discard":
            engine.update_weights(values)
        assert answers(engine) == expected
        assert recorded.items() <= recordings(engine).items()


def test_two_engines_on_one_card(folder):
    with build(folder, enable_memory_saver=True) as one, build(folder, enable_memory_saver=True) as two:
        expected = [answers(engine) for engine in (one, two)]
        for _ in range(3):
            report = one.release_memory(["weights", "kv_cache"], weights="host")
            disturb(report.freed)
            assert answers(two) == expected[1]
            two.release_memory(weights="host")
            one.resume_memory()
            assert answers(one) == expected[0]
            two.resume_memory()
            assert answers(two) == expected[1]


def test_results_are_those_of_an_engine_without_the_option(folder):
    with build(folder) as engine:
        expected = answers(engine)
        with pytest.raises(ConfigError, match="enable_memory_saver=True"):
            engine.release_memory()
        assert engine.resume_memory().freed == 0
        assert answers(engine) == expected
    with build(folder, enable_memory_saver=True) as engine:
        assert answers(engine) == expected


# ---- the driver


def test_an_arena_is_where_it_was():
    device = torch.device("cuda")
    arena = Arena(CudaDriver(device), zeroed=True)
    before = free()
    small, large = arena.bytes(1), arena.zeros((3 * 2**18, 1024), torch.float32, device)  # 3 GiB
    assert large.is_cuda
    assert not large.any()
    assert arena.held() == 3 * GIB + 2 * MIB
    assert before - free() == pytest.approx(arena.held(), abs=SLACK)
    address = large.data_ptr()
    large.fill_(2)
    assert arena.release() == 3 * GIB + 2 * MIB
    assert before - free() <= SLACK
    disturb(3 * GIB)
    arena.resume()
    assert large.data_ptr() == address
    assert not large.any()
    assert (large + 1).sum() == large.numel()
    assert small.item() == 0
    arena.close()
    del small, large
    assert before - free() <= SLACK


def test_a_tensor_keeps_its_memory():
    arena = Arena(CudaDriver(torch.device("cuda")))
    before = free()
    view = arena.bytes(64 * MIB).fill_(3)[10 * MIB :].view(torch.float32)
    arena.close()
    del arena
    assert before - free() >= 64 * MIB - SLACK
    assert (view.view(torch.uint8) == 3).all()
    del view
    assert before - free() <= SLACK


def test_more_than_there_is_is_refused_without_a_trace():
    arena = Arena(CudaDriver(torch.device("cuda")))
    before = free()
    with pytest.raises(DeviceMemoryError, match=r"cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY \(2\)"):
        arena.bytes(before + 4 * GIB)
    assert before - free() <= SLACK
    assert arena.held() == 0
