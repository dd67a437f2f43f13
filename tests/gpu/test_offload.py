"""``cpu_offload_gb`` on the GPU: results to the bit, recorded or not; new weights; memory on both sides."""

from __future__ import annotations

import gc
import logging

import pytest
import torch

from rootlet.models.loader import load_model

from ..models.hf import build_hf, state_of
from .tiny import CONTEXT, build, generate, random_prompt, requests

NUM_LAYERS = 8
GIB = 2**30
ALL = 1.0  # GiB: far more than these models hold
SIZES = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": NUM_LAYERS}
PROMPTS = [random_prompt(length, seed) for seed, length in enumerate([1, 17, 130, 700])]
PARAMS = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
EAGER = [{}, {"disable_cuda_graph": True}]


def build_model(seed: int = 0, family: str = "Llama"):
    return build_hf(family, seed, max_position_embeddings=CONTEXT, **SIZES)


@pytest.fixture(scope="module", params=["Llama", "Qwen2"])  # without biases and with them
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("offload")
    build_model(family=request.param).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def layer_gib(folder):
    """GiB of one layer, in fp32."""
    names = load_model(folder, dtype="float32", device="cpu").model.weight_shapes.items()
    num_bytes = sum(torch.Size(shape).numel() * 4 for name, shape in names if ".layers.0." in name)
    return num_bytes / GIB


def answers(engine):
    """Tokens and log-probabilities of prompts one by one, so that every step is the same in each run."""
    outputs = [
        engine.generate(
            input_ids=prompt,
            sampling_params=PARAMS,
            return_logprob=True,
            logprob_start_len=0,
            top_logprobs_num=3,
        )
        for prompt in PROMPTS
    ]
    return [
        (list(out.token_ids), out.input_token_logprobs, out.output_token_logprobs, out.output_top_logprobs)
        for out in outputs
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", EAGER, ids=["graphs", "eager"])
def test_tokens_and_logprobs_are_the_same(folder, layer_gib, dtype, options):
    """Some layers, and all; one by one to the bit, all prompts at once token for token."""
    with build(folder, dtype=dtype, **options) as engine:
        expected = answers(engine)
        together = generate(engine, *requests()) if dtype == "float32" else None
    for amount in (3 * layer_gib, ALL):
        with build(folder, dtype=dtype, cpu_offload_gb=amount, **options) as engine:
            assert answers(engine) == expected
            engine.flush_cache()
            assert answers(engine) == expected  # where steps are recorded, this replays them
            if together is not None:
                assert generate(engine, *requests()) == together


@pytest.mark.parametrize("options", EAGER, ids=["graphs", "eager"])
def test_steps_in_close_succession_do_not_mix_their_weights(folder, options):
    """Hundreds of short steps, launched before the one ahead has ended."""
    long = {"temperature": 0, "max_new_tokens": 400, "ignore_eos": True}
    with build(folder, **options) as engine:
        expected = engine.generate(input_ids=PROMPTS[2], sampling_params=long).token_ids
    with build(folder, cpu_offload_gb=ALL, **options) as engine:
        for _ in range(3):
            assert engine.generate(input_ids=PROMPTS[2], sampling_params=long).token_ids == expected


@pytest.mark.parametrize("options", EAGER, ids=["graphs", "eager"])
def test_new_weights_reach_steps_that_were_recorded_before(tmp_path, options):
    build_model(0).save_pretrained(tmp_path / "old")
    other = build_model(1)
    other.save_pretrained(tmp_path / "new")
    with build(str(tmp_path / "new"), **options) as engine:
        expected = answers(engine)

    def update(core):
        core.runner.model.load_weights(state_of(other).items())
        torch.cuda.synchronize()

    with build(str(tmp_path / "old"), cpu_offload_gb=ALL, **options) as engine:
        assert answers(engine) != expected
        engine._loop.call(update)
        engine.flush_cache()
        assert answers(engine) == expected


def test_device_memory_falls_by_what_was_moved(folder, layer_gib, caplog):
    """All layers but the two that the buffers hold leave the device; and all comes back at the end."""

    def allocated() -> int:
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    build(folder).close()  # what stays for good (cuBLAS workspaces) is there now
    before = allocated()
    engine = build(folder)
    resident = allocated() - before
    engine.close()
    assert allocated() == before
    for moved, amount in ((3, 3 * layer_gib), (NUM_LAYERS, ALL)):
        with caplog.at_level(logging.INFO, "rootlet.models"):
            engine = build(folder, cpu_offload_gb=amount)
        assert f"{moved} of {NUM_LAYERS} layers" in caplog.text
        saved = resident - (allocated() - before)
        assert saved == pytest.approx((moved - 2) * layer_gib * GIB, abs=2**20)
        generate(engine, *requests())
        engine.close()
        del engine
        assert allocated() == before


def test_loading_needs_no_room_for_the_layers_that_move(folder, layer_gib):
    """The most that is allocated while loading: two buffers, what stays, and a tensor on its way."""

    def peak(**options) -> int:
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loaded = load_model(folder, dtype="float32", device="cuda", **options)
        torch.cuda.synchronize()
        del loaded
        return torch.cuda.max_memory_allocated() - before

    layer = layer_gib * GIB
    assert peak() > NUM_LAYERS * layer
    assert peak(cpu_offload_gb=ALL) < 4 * layer


def test_host_memory_is_locked_while_the_engine_lives(folder):
    engine = build(folder, cpu_offload_gb=ALL)
    model = engine._loop._core.runner.model
    home = model.get_weight(f"model.layers.{NUM_LAYERS - 1}.mlp.down_proj.weight")
    assert home.device.type == "cpu"
    assert home.is_pinned()
    values = home.clone()
    del model
    engine.close()
    gc.collect()
    assert not home.is_pinned()
    assert torch.equal(home, values)  # whoever holds a weight may keep it


def test_two_engines_stream_their_layers_side_by_side(folder):
    """On one card, each with buffers and a stream of its own."""
    with build(folder) as engine:
        expected = answers(engine)
    with build(folder, cpu_offload_gb=ALL) as one, build(folder, cpu_offload_gb=ALL) as two:
        handles = [
            engine.submit(input_ids=PROMPTS[3], sampling_params=PARAMS)
            for _ in range(4)
            for engine in (one, two)
        ]
        assert all(list(handle.result(60).token_ids) == expected[3][0] for handle in handles)
        assert answers(two) == expected
