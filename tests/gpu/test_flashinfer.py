"""flashinfer as attention backend: tiny models beside our Triton kernels, the real one beside transformers.

Where kernels are compiled for the first time, engines here take minutes to build.
"""

from __future__ import annotations

import copy
import gc
import os

import pytest
import torch

pytest.importorskip("flashinfer", reason="needs the package flashinfer-python")

import flashinfer

from rootlet.errors import ConfigError

from ..models.hf import build_hf
from . import test_smollm2 as real
from .tiny import CONTEXT, build, generate, logit_gaps, logits_after, random_prompt, requests, saved

# Small hidden states: a bf16 model with larger ones is too sensitive to compare anything.
MODELS = {
    "head-64": ("Llama", {"head_dim": 64}),
    "window-40": ("Mistral", {"head_dim": 64, "sliding_window": 40}),
    "window-5": ("Mistral", {"head_dim": 64, "sliding_window": 5}),
    "head-128": ("Llama", {"head_dim": 128, "num_key_value_heads": 1}),
}
# Log-probabilities of the same tokens by two kernels that round in different places: seen on a CPU, on 500
# positions, mean 0.02 and at most 0.12. A window that is off by one makes it 0.24 and 1.9.
MEAN, WORST = 0.06, 0.6
NEW_TOKENS = 20
GREEDY = {"temperature": 0, "ignore_eos": True}


def save(model, root):
    name, fields = MODELS[model]
    build_hf(name, max_position_embeddings=CONTEXT, **fields).save_pretrained(root / model)
    return str(root / model)


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    return save(request.param, tmp_path_factory.mktemp("flashinfer"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save("head-64", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def by_triton(folder):
    """Scores any sequences with our own kernels: all prompt log-probabilities, and the best there were."""
    with build(folder, dtype="bfloat16", attention_backend="triton", disable_radix_cache=True) as engine:

        def score(sequences):
            options = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 1}
            params = GREEDY | {"max_new_tokens": 1}
            outputs = engine.generate(input_ids=sequences, sampling_params=params, **options)
            return [
                (
                    torch.tensor([logprob for logprob, *_ in output.input_token_logprobs[1:]]),
                    torch.tensor([top[0][0] for top in output.input_top_logprobs[1:]]),
                )
                for output in outputs
            ]

        yield score


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"page_size": 16},
        {"page_size": 1, "chunked_prefill_size": 48},
        {"disable_overlap_schedule": True, "chunked_prefill_size": 100},
        {"max_total_tokens": 1024},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "defaults",
)
def test_tiny_models_agree_with_triton(folder, by_triton, options):
    """Prefill, chunks, decode and, with little memory, preemption; all requests in one batch.

    Prompt and output as scored while they were computed, and as Triton's kernels score them; and every chosen
    token beside the one that Triton's kernels would choose in its place.
    """
    lengths = [1, 2, 16, 17, 63, 64, 65, 130, 300, 500, 900]
    prompts = [random_prompt(length, seed) for seed, length in enumerate(lengths)]
    with build(folder, dtype="bfloat16", attention_backend="flashinfer", **options) as engine:
        assert engine.get_server_info()["attention_backend"] == "flashinfer"
        outputs = engine.generate(
            input_ids=prompts,
            sampling_params=GREEDY | {"max_new_tokens": NEW_TOKENS},
            return_logprob=True,
            logprob_start_len=0,
        )
    sequences = [prompt + list(output.token_ids) for prompt, output in zip(prompts, outputs)]
    differences, gaps = [], []
    for output, (logprobs, best) in zip(outputs, by_triton(sequences)):
        got = [logprob for logprob, *_ in output.input_token_logprobs[1:] + output.output_token_logprobs]
        differences.append(torch.tensor(got) - logprobs)
        gaps.append((best - logprobs)[-NEW_TOKENS:])
    differences, gaps = torch.cat(differences).abs(), torch.cat(gaps)
    assert differences.mean() < MEAN
    assert differences.max() < WORST
    assert gaps.max() < WORST  # a near tie in Triton's eyes


@pytest.fixture(scope="module")
def model(hf_smollm2):
    """transformers' SmolLM2 in bf16 on the GPU."""
    return copy.deepcopy(hf_smollm2).to("cuda", torch.bfloat16)


prompts = real.prompts


def build_real(path, **options):
    return real.build(path, "bfloat16", attention_backend="flashinfer", **options)


def assert_near_ties(model, prompts, tokens):
    """The rule of test_smollm2.py."""
    gaps = torch.stack([logit_gaps(model, prompt, out) for prompt, out in zip(prompts, tokens)])
    worst = gaps.amax(1).tolist()
    assert max(worst) < real.GAP["bfloat16"], dict(zip(map(len, prompts), worst))
    assert (gaps == 0).float().mean() >= real.AGREEING["bfloat16"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"page_size": 16},
        {"page_size": 16, "chunked_prefill_size": 100},
        {"chunked_prefill_size": 512, "disable_overlap_schedule": True},
        {"batch_size": 1},
        {"max_total_tokens": 2100},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "defaults",
)
def test_smollm2_equals_transformers_up_to_near_ties(smollm2_gguf, prompts, model, options):
    batch_size = options.get("batch_size")
    options = {name: value for name, value in options.items() if name != "batch_size"}
    with build_real(smollm2_gguf, **options) as engine:
        tokens = generate(engine, prompts, [real.NEW_TOKENS] * len(prompts), batch_size=batch_size)
    assert_near_ties(model, prompts, tokens)


@pytest.mark.parametrize("page_size", [16, 64])
def test_smollm2_with_cached_prefixes(smollm2_gguf, prompts, model, page_size):
    """A second time every prompt is a hit but for its last token, and pages are shared among the rows."""
    params = GREEDY | {"max_new_tokens": real.NEW_TOKENS}
    with build_real(smollm2_gguf, page_size=page_size) as engine:
        generate(engine, prompts, [1] * len(prompts), batch_size=1)
        outputs = engine.generate(input_ids=prompts, sampling_params=params)
    assert [output.cached_tokens for output in outputs] == [len(prompt) - 1 for prompt in prompts]
    assert_near_ties(model, prompts, [list(output.token_ids) for output in outputs])


def test_smollm2_logprobs(smollm2_gguf, prompts, model):
    prompt = prompts[-1]
    with build_real(smollm2_gguf, chunked_prefill_size=512) as engine:
        out = engine.generate(
            input_ids=prompt,
            sampling_params=GREEDY | {"max_new_tokens": real.NEW_TOKENS},
            return_logprob=True,
            logprob_start_len=0,
        )
    got = torch.tensor([t[0] for t in out.input_token_logprobs[1:] + out.output_token_logprobs])
    ids = prompt + list(out.token_ids)
    logprobs = torch.log_softmax(logits_after(model, ids[:1], ids[1:]), -1)
    want = logprobs.gather(1, torch.tensor(ids[1:], device="cuda")[:, None])[:, 0].cpu()
    assert (got - want).abs().mean() < real.MEAN_LOGPROB["bfloat16"]
    assert (got - want).mean().abs() < real.MEAN_LOGPROB["bfloat16"] / 4


@pytest.mark.parametrize("batch_size", [1, 8])
def test_overlap_changes_no_token(smollm2_gguf, prompts, batch_size):
    """Bitwise the same work with a step in flight and without."""
    prompts = prompts[4 : 4 + batch_size] if batch_size > 1 else prompts[15:16]
    tokens = []
    for options in ({}, {"disable_overlap_schedule": True}):
        with build_real(smollm2_gguf, **options) as engine:
            tokens.append(generate(engine, prompts, [48] * batch_size))
    assert tokens[0] == tokens[1]


def test_requests_load_no_kernel_and_set_no_variable(plain):
    """What is compiled is compiled at construction."""
    variables = dict(os.environ)
    with build(plain, dtype="bfloat16", attention_backend="flashinfer") as engine:
        loaded = flashinfer.prefill.get_batch_prefill_module.cache_info()
        generate(engine, *requests())
        generate(engine, *requests(), batch_size=1)
        assert flashinfer.prefill.get_batch_prefill_module.cache_info().misses == loaded.misses
    assert dict(os.environ) == variables


def test_memory_comes_back(plain):
    def once():
        with build(plain, dtype="bfloat16", attention_backend="flashinfer") as engine:
            generate(engine, *requests())

    def allocated():
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    once()
    before = allocated()
    for _ in range(2):
        once()
        assert allocated() == before


def test_what_flashinfer_lacks_is_refused(tmp_path, plain):
    with pytest.raises(ConfigError, match=r"64, 128, 256.*head_dim is 16"):
        build(saved("llama", tmp_path), dtype="bfloat16", attention_backend="flashinfer")
    with pytest.raises(ConfigError, match="bfloat16 or float16"):
        build(plain, dtype="float32", attention_backend="flashinfer")
