"""Logit processors in the sampler: who is called with what, what comes of it, and what fails."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import rootlet
from rootlet.errors import InvalidRequestError, LogitProcessorError, NumericalError
from rootlet.sampling.custom import resolve_processor
from rootlet.sampling.processors import NO_TOKEN, SPOILED, explain
from rootlet.sampling.sampler import Sampler, SamplingBatch

NAN, INF = float("nan"), float("inf")


class Only(rootlet.CustomLogitProcessor):
    """The documented example, less the import."""

    def __call__(self, logits, custom_param_list):
        assert logits.shape[0] == len(custom_param_list)
        for i, param_dict in enumerate(custom_param_list):
            logits[i, :] = -float("inf")
            logits[i, param_dict["token_id"]] = 0.0
        return logits


@pytest.fixture
def logits():
    return torch.randn(4, 300, generator=torch.Generator().manual_seed(3))


def using(row, processor, **custom_params):
    return dataclasses.replace(row, processor=processor, custom_params=custom_params)


def test_strings_are_loaded_once_and_refused_if_wrong():
    text = Only().to_str()
    assert set(json.loads(text)) == {"callable"}
    assert isinstance(rootlet.CustomLogitProcessor.from_str(text), Only)
    assert resolve_processor(text, None) is resolve_processor(str(text), {"token_id": 1})
    for bad in ("", "{}", '{"callable": "zz"}', '{"callable": "00"}', Only, 5, [Only()]):
        with pytest.raises(InvalidRequestError, match="custom_logit_processor"):
            resolve_processor(bad, None)
    with pytest.raises(InvalidRequestError, match="there is none"):
        resolve_processor(None, {})


def test_rows_are_grouped_and_others_untouched(sample, row, logits):
    calls = []

    def watch(given, params):
        calls.append((given.clone(), params))
        return given

    only = Only()
    rows = [using(row(), watch, a=1), using(row(temperature=0), only, token_id=7), row(seed=5, top_k=9)]
    rows.append(using(row(), watch))
    out = sample(logits, rows)
    assert len(calls) == 1
    assert torch.equal(calls[0][0], logits[[0, 3]])
    assert calls[0][1] == [{"a": 1}, {}]
    plain = sample(logits, [dataclasses.replace(r, processor=None) for r in rows])
    assert out.token_ids.tolist() == [plain.token_ids[0], 7, plain.token_ids[2], plain.token_ids[3]]
    assert not rows[0].is_argmax
    assert not any(r.is_argmax for r in rows if r.processor)


@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_p": 0.5, "temperature": 0.1}], ids=str)
def test_infinity_forces_a_token_and_logprobs_describe_it(sample, row, logits, params):
    def force(given, _):
        given[:, 42] = INF
        return given

    out = sample(logits[:1], [using(row(logprobs=True, **params), force)])
    assert out.token_ids.tolist() == [42]
    assert out.logprobs.tolist() == [0.0]
    assert not out.flags.any()


WRONG = [
    (lambda x, _: None, "return logits"),
    (lambda x, _: x[:, 1:], r"\[2, 299\]"),
    (lambda x, _: x.double(), "float64"),
    (lambda x, _: x.to_sparse(), "instead of"),
    (lambda x, p: x + p[0]["missing"], "KeyError"),
    (lambda x: x, "TypeError"),
]


@pytest.mark.parametrize(("processor", "message"), WRONG, ids=[m for _, m in WRONG])
def test_a_failing_processor_fails_its_rows(sample, row, logits, processor, message):
    rows = [row(seed=1), using(row(), processor), row(temperature=0), using(row(temperature=0), processor)]
    out = sample(logits, rows)
    assert set(out.errors) == {1, 3}
    assert isinstance(out.errors[1], LogitProcessorError)
    with pytest.raises(LogitProcessorError, match=f"<lambda>.*{message}"):
        raise out.errors[1]
    plain = sample(logits, [dataclasses.replace(r, processor=None) for r in rows])
    assert torch.equal(out.token_ids[[0, 2]], plain.token_ids[[0, 2]])
    assert not out.flags.any()
    cause = out.errors[3].__cause__
    assert (cause is not None) == ("raised" in str(out.errors[3]))
    assert cause is None or cause.__traceback__ is None


@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_k": 5}, {"min_p": 0.1}], ids=str)
def test_rows_without_a_token_are_flagged(sample, row, logits, params):
    def spoil(given, _):
        given[1, 9] = NAN
        return given

    logits[0] = NAN
    logits[1] = -INF
    rows = [row(**params), row(**params), *[using(row(**params), spoil)] * 2]
    out = sample(logits, rows)
    assert (out.flags != 0).tolist() == [True, True, False, True]
    assert int(out.flags[3]) & SPOILED
    assert isinstance(explain(int(out.flags[3]), rows[3]), LogitProcessorError)
    assert int(out.flags[0]) == NO_TOKEN
    assert isinstance(explain(NO_TOKEN, rows[0]), NumericalError)


def test_the_models_nan_is_not_the_processors(sample, row, logits):
    logits[0, 3] = NAN
    [flag] = sample(logits[:1], [using(row(temperature=0), lambda x, _: x)]).flags.tolist()
    assert flag == NO_TOKEN


def test_the_fused_sampler_agrees(sample, row, logits):
    pytest.importorskip("supported_triton")

    def spoil(given, _):
        given[1, 9] = NAN
        return given

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [
        using(row(temperature=0, logprobs=True), Only(), token_id=7),
        row(seed=2),
        *[using(row(), spoil)] * 2,
    ]
    batch = SamplingBatch.build(rows, 300, device)
    tokens, positions = torch.zeros(2, 64, dtype=torch.int32), torch.ones(4, dtype=torch.int64)
    given = logits.bfloat16()
    fused = Sampler(300, device, fused=True)
    out = fused.sample(given.to(device), batch, positions.to(device), tokens.to(device))
    wanted = sample(given, rows, positions, tokens)
    assert out.token_ids[:3].tolist() == wanted.token_ids[:3].tolist()
    assert out.logprobs[0] == 0
    assert [bool(flag) for flag in out.flags] == [False, False, False, True]
