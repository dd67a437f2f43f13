"""Log-likelihoods of continuations against transformers, and what they cost."""

from __future__ import annotations

import asyncio

import pytest
import torch
from hf_reference import log_softmax

import rootlet
from rootlet.errors import InvalidRequestError

PROMPTS = ["The capital of France is", "Two plus two equals", "She opened the door and"]
ENDINGS = [
    [" Paris.", " London, of course", " a"],
    [" four", " five", " twenty-two", " 4"],
    [" saw a cat", " nobody"],
]


@pytest.fixture(scope="module")
def engine(smollm2_dir):
    with rootlet.Engine(str(smollm2_dir), dtype="float32", max_total_tokens=4000) as engine:
        yield engine


def test_scores_equal_transformers(engine, hf_smollm2):
    scores = engine.score(PROMPTS, ENDINGS)
    for prompt, endings, group in zip(PROMPTS, ENDINGS, scores):
        context = engine.tokenizer(prompt)["input_ids"]
        assert len(group) == len(endings)
        for ending, score in zip(endings, group):
            whole = engine.tokenizer(prompt + ending)["input_ids"]
            assert whole == [*context, *score.token_ids]
            reference = log_softmax(hf_smollm2, whole)
            targets = torch.tensor(whole[1:])
            expected = reference[:-1].gather(1, targets[:, None])[len(context) - 1 :, 0]
            torch.testing.assert_close(torch.tensor(score.token_logprobs), expected, atol=1e-4, rtol=0)
            assert score.logprob == pytest.approx(expected.sum().item(), abs=1e-4 * score.num_tokens)
    assert scores[0][0].logprob > scores[0][1].logprob


def test_shapes_ids_and_asyncio(engine):
    expected = engine.score(PROMPTS, ENDINGS)[1]
    assert [s.logprob for s in engine.score(PROMPTS[1], ENDINGS[1])] == pytest.approx(
        [s.logprob for s in expected], abs=1e-5
    )
    ids = engine.tokenizer(PROMPTS[1])["input_ids"]
    by_ids = engine.score(ids, [list(s.token_ids) for s in expected])
    assert [s.token_ids for s in by_ids] == [s.token_ids for s in expected]
    assert [s.logprob for s in by_ids] == pytest.approx([s.logprob for s in expected], abs=1e-5)
    later = asyncio.run(engine.async_score(PROMPTS, ENDINGS))
    assert [len(group) for group in later] == [3, 4, 2]
    assert engine.score(PROMPTS, [[], [], []]) == [[], [], []]


def test_the_context_is_computed_once(engine):
    engine.flush_cache()
    ids = [100 + 37 * i % 4000 for i in range(500)]
    before = engine.stats().num_computed_tokens
    scores = engine.score(ids, [[200 + i, 300 + i] for i in range(40)])
    computed = engine.stats().num_computed_tokens - before
    # the last token of the context is computed by each: its logits are what they ask for
    assert computed == 502 + 39 * 3
    assert [s.cached_tokens for s in scores] == [0] + [499] * 39


def test_a_merge_across_the_border_is_scored_as_the_model_sees_it(engine):
    """'New' + 'ton' may be one token: the continuation then begins with that token."""
    prompt, ending = "Isaac New", "ton"
    [score] = engine.score(prompt, [ending])
    whole = engine.tokenizer(prompt + ending)["input_ids"]
    assert tuple(whole[-score.num_tokens :]) == score.token_ids
    assert engine.tokenizer.decode(whole) == prompt + ending


@pytest.mark.parametrize(
    ("prompts", "continuations", "says"),
    [
        ("", [" a"], "at least one token"),
        ("Hello", [""], "adds no token"),
        ("Hello", " world", "must be a list"),
        ("Hello", [[5]], "all be texts or all lists of token ids"),
        (["Hello"], [[" a"], [" b"]], "1 prompts need as many"),
        ([5, 6], [" a"], "all be texts or all lists"),
        (7, [" a"], "one prompt and a list"),
    ],
)
def test_bad_arguments_are_refused(engine, prompts, continuations, says):
    with pytest.raises(InvalidRequestError, match=says):
        engine.score(prompts, continuations)


def test_without_a_tokenizer(tiny_model):
    with rootlet.Engine(
        tiny_model, load_format="dummy", skip_tokenizer_init=True, max_total_tokens=256, dtype="float32"
    ) as engine:
        [score] = engine.score([5, 6, 7], [[8, 9]])
        assert score.token_ids == (8, 9)
        with pytest.raises(InvalidRequestError, match="no tokenizer"):
            engine.score("Hello", [" world"])
