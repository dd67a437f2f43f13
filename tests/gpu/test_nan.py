"""A model that yields NaN on the GPU: its requests end with an error, and nobody else notices."""

from __future__ import annotations

import copy

import pytest
import torch

from rootlet.errors import NumericalError

from .tiny import build, random_prompt, reference

BAD = 50  # the token whose embedding is NaN
GREEDY = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
DRAWN = {"temperature": 1.0, "max_new_tokens": 24, "ignore_eos": True}
GOOD = [[t for t in random_prompt(length, length) if t != BAD] for length in (1, 60, 130, 300)]
BROKEN = [[BAD], [BAD, 3, 4, 5], [BAD, *random_prompt(400, 3)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny Llama with NaN in one row of its embedding; the head never prefers that token."""
    model = copy.deepcopy(reference("llama"))
    with torch.no_grad():
        model.model.embed_tokens.weight[BAD] = float("nan")
        model.lm_head.weight[BAD] = 0
    folder = tmp_path_factory.mktemp("broken")
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "options",
    [{}, {"disable_cuda_graph": True, "page_size": 1}, {"dtype": "bfloat16"}],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "defaults",
)
def test_broken_requests_fail_alone(folder, options):
    """Greedy or drawn, whole prompts or cached ones; beside good requests, and before others on their pages.

    bf16 sums differ with the size of a batch, so there the good ones run one by one.
    """
    with build(folder, max_total_tokens=1024, **options) as engine:
        alone = [engine.generate(input_ids=ids, sampling_params=GREEDY).token_ids for ids in GOOD]
        assert not any(BAD in tokens for tokens in alone)
        for params in (GREEDY, DRAWN, DRAWN | {"top_k": 5}):
            for ids in BROKEN:
                for _ in range(2):  # the second time all but the last token are cached
                    with pytest.raises(NumericalError, match="no token to choose"):
                        engine.generate(input_ids=ids, sampling_params=params)
        if "dtype" not in options:
            good = [engine.submit(input_ids=ids, sampling_params=GREEDY) for ids in GOOD]
            broken = [engine.submit(input_ids=ids, sampling_params=GREEDY) for ids in BROKEN]
            for handle in broken:
                with pytest.raises(NumericalError):
                    handle.result(60)
            assert [handle.result(60).token_ids for handle in good] == alone
        engine.flush_cache()  # the pages of the broken ones are free, and full of NaN
        assert [engine.generate(input_ids=ids, sampling_params=GREEDY).token_ids for ids in GOOD] == alone
