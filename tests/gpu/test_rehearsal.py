"""Nothing is compiled at a request: Triton is asked, in fresh engines, whatever is asked of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ways import WAYS

from .tiny import build, random_prompt, saved

triton = pytest.importorskip("triton")

ASKED = [
    {},
    {"return_logprob": True},
    {"return_logprob": True, "logprobs_of": "sampled"},
    {"return_logprob": True, "logprobs_of": "raw", "top_logprobs_num": 2},
    {"return_logprob": True, "top_logprobs_num": 3, "logprob_start_len": 0},
    {"return_hidden_states": True},
    {"return_sampling_mask": True},
]


@pytest.fixture
def compiled(monkeypatch):
    """(kernel, thread) of each that this process compiles, or looks for on disk, from now on."""
    found = []

    def note(*, repr, **_):
        found.append((repr, threading.current_thread().name))

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", note)
    return found


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "triton"))


@pytest.mark.parametrize("family", ["llama", "llama-odd-heads", "mistral-window", "qwen2"])
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"dtype": "float32", "page_size": 16},
        {"dtype": "bfloat16", "disable_cuda_graph": True},
        {"dtype": "bfloat16", "deterministic": True},
    ],
    ids=str,
)
def test_nothing_is_compiled_at_a_request(tmp_path, compiled, family, options):
    with build(saved(family, tmp_path), max_total_tokens=65_536, **options) as engine:
        ahead = [one for one in compiled if one[1].startswith("rootlet-compile")]
        late = [one for one in compiled if one not in ahead]
        assert late == []  # not even in the constructor, by the first steps
        compiled.clear()

        def generate(prompts, params, **more):
            params = [{"max_new_tokens": 5, "ignore_eos": True} | one for one in params]
            engine.generate(input_ids=prompts, sampling_params=params, **more)

        for asked in ASKED:
            prompts = [random_prompt(5 + 7 * i, i) for i in range(len(WAYS))]
            for prompt, way in zip(prompts, WAYS):
                generate([prompt], [way], **asked)
            generate(prompts, WAYS, **asked)
        for count in (2, 3, 5, 17, 40, 130):
            generate([random_prompt(1 + i % 50, 100 + i) for i in range(count)], [WAYS[0]] * count)
        shared = random_prompt(700, 1000)
        for count in (4, 30):
            generate([shared + random_prompt(9, 2000 + i) for i in range(count)], [WAYS[0]] * count)
        assert compiled == []


def test_cold_starts_beside_each_other(tmp_path, compiled, empty_cache):
    """Several engines of one process at once: each kernel is launched by its own launcher."""
    folders = [saved(family, tmp_path) for family in ("llama", "qwen2", "llama-odd-heads")]
    with ThreadPoolExecutor(len(folders)) as threads:
        engines = list(threads.map(lambda folder: build(folder, max_total_tokens=2048), folders))
    assert compiled
    for engine in engines:
        with engine:
            params = {"max_new_tokens": 5, "temperature": 1, "top_p": 0.9}
            assert len(engine.generate(input_ids=random_prompt(9, 1), sampling_params=params).token_ids) == 5
    torch.cuda.synchronize()
