"""Prompts given as vectors: those of tokens give what the tokens give, whatever else is going on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rootlet
from rootlet.errors import InvalidRequestError

PROMPTS = [[3 + (11 * i + 5 * j) % 90 for j in range(n)] for i, n in enumerate((1, 2, 9, 30, 47))]
PARAMS = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def table(tiny_model):
    """The embedding of every token of the model that ``build`` makes."""
    from rootlet.models.loader import load_model

    model = load_model(tiny_model, dtype="float32", load_format="dummy").model
    return model.get_weight("model.embed_tokens.weight").float()


def build(tiny_model, **options):
    options = {"max_total_tokens": 1024, "page_size": 4, "dtype": "float32"} | options
    return rootlet.Engine(tiny_model, load_format="dummy", skip_tokenizer_init=True, device="cpu", **options)


def tokens(outputs):
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunked_prefill_size": 5},
        {"page_size": 1, "disable_radix_cache": True},
        {"disable_overlap_schedule": False, "chunked_prefill_size": 7},
        {"max_total_tokens": 64, "max_running_requests": 5},
    ],
    ids=str,
)
def test_the_embeddings_of_tokens_give_what_the_tokens_give(tiny_model, table, options):
    embeds = [table[ids] for ids in PROMPTS]
    with build(tiny_model, **options) as engine:
        want = engine.generate(input_ids=PROMPTS, sampling_params=PARAMS)
        got = engine.generate(input_embeds=embeds, sampling_params=PARAMS)
        mixed = [
            engine.submit(input_ids=PROMPTS[i], sampling_params=PARAMS)
            if i % 2
            else engine.submit(input_embeds=embeds[i], sampling_params=PARAMS)
            for i in range(len(PROMPTS))
        ]
        assert tokens(got) == tokens(want) == [handle.result().token_ids for handle in mixed]
    assert [output.prompt_tokens for output in got] == [len(ids) for ids in PROMPTS]


def test_equal_prompts_share_the_cache_and_others_do_not(tiny_model, table):
    one, other = table[PROMPTS[3]], table[PROMPTS[3]].clone()
    other[0, 0] += 0.5
    with build(tiny_model) as engine:
        first = engine.generate(input_embeds=one, sampling_params=PARAMS)
        again = engine.generate(input_embeds=one.tolist(), sampling_params=PARAMS)
        ones = engine.generate(input_ids=[1] * 30, sampling_params=PARAMS)  # the ids it goes by
        changed = engine.generate(input_embeds=other, sampling_params=PARAMS)
    assert [first.cached_tokens, again.cached_tokens, ones.cached_tokens, changed.cached_tokens] == [
        0,
        29,
        0,
        0,
    ]
    assert first.token_ids == again.token_ids


def test_every_form(tiny_model, table):
    ids = PROMPTS[2]
    with build(tiny_model) as engine:
        want = engine.generate(input_ids=ids, sampling_params=PARAMS).token_ids
        matrix = table[ids]
        for given in (matrix, matrix.numpy(), matrix.double(), matrix.tolist(), tuple(matrix)):
            assert engine.generate(input_embeds=given, sampling_params=PARAMS).token_ids == want
        for given in (matrix[None], [matrix], [matrix.tolist()], np.stack([matrix.numpy()])):
            [output] = engine.generate(input_embeds=given, sampling_params=PARAMS)
            assert output.token_ids == want
        samples = engine.generate(input_embeds=matrix, sampling_params=PARAMS | {"n": 3})
        assert tokens(samples) == [want] * 3
        matrix_copy = matrix.clone()
        handle = engine.submit(input_embeds=matrix_copy, sampling_params=PARAMS)
        matrix_copy.zero_()  # the caller's to do with as it likes
        assert handle.result().token_ids == want


def test_refusals(tiny_model, table):
    row = table[:2]
    with build(tiny_model) as engine:
        for bad, match in (
            ({"input_embeds": row[:, :-1]}, "shape"),
            ({"input_embeds": row[:0]}, "at least one"),
            ({"input_embeds": row[0]}, "shape"),
            ({"input_embeds": []}, "shape"),
            ({"input_embeds": [[0.0, 1.0], [2.0]]}, "numbers"),
            ({"input_embeds": "text"}, "numbers"),
            ({"input_embeds": row * float("nan")}, "finite"),
            ({"input_embeds": [row, row[:, :3]]}, "prompt 1"),
            ({"input_embeds": row, "input_ids": [1]}, "exactly one"),
            ({"input_embeds": row, "return_logprob": True, "logprob_start_len": 0}, "logprob_start_len"),
            ({"input_embeds": row, "sampling_params": {"repetition_penalty": 1.5}}, "repetition_penalty"),
        ):
            with pytest.raises(InvalidRequestError, match=match):
                engine.generate(**bad)
        session = engine.open_session()
        with pytest.raises(InvalidRequestError, match="session"):
            engine.generate(input_embeds=row, session_params={"id": session})
    assert torch.equal(row, table[:2])
