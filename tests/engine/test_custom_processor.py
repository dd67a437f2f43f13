"""Logit processors of requests in an engine: composition with the rest, and failures that stay apart."""

from __future__ import annotations

import pytest
import torch

import rootlet
from rootlet.errors import InvalidRequestError, LogitProcessorError, NumericalError

PROMPT = [1, 2, 3, 4]
GREEDY = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}


class Only(rootlet.CustomLogitProcessor):
    def __call__(self, logits, custom_param_list):
        for row, params in zip(logits, custom_param_list):
            row[:] = -float("inf")
            row[params["token_id"]] = 0.0
        return logits


def count_up(logits, custom_param_list):
    """Keeps notes in the request's own dict."""
    for row, params in zip(logits, custom_param_list):
        params["next"] = params.get("next", 9) + 1
        row[params["next"]] = float("inf")
    return logits


@pytest.fixture(scope="module", params=[False, True], ids=["steps", "overlap"])
def engine(tiny_model, request):
    options = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_total_tokens": 512,
        "dtype": "float32",
    }
    with rootlet.Engine(tiny_model, disable_overlap_schedule=not request.param, **options) as engine:
        yield engine


def test_in_a_batch_with_and_without(engine):
    plain = engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
    params = [GREEDY | {"custom_params": {"token_id": i}} for i in (5, 6)]
    params += [GREEDY, {"temperature": 1, "max_new_tokens": 6, "seed": 4, "presence_penalty": 1.0}]
    only = Only()
    outs = engine.generate(
        input_ids=[PROMPT] * 4,
        sampling_params=params,
        custom_logit_processor=[only, only.to_str(), None, count_up],
        return_logprob=[True, False, True, True],
    )
    assert [out.token_ids for out in outs] == [(5,) * 6, (6,) * 6, plain.token_ids, tuple(range(10, 16))]
    assert [logprob for logprob, *_ in outs[0].output_token_logprobs] == [0.0] * 6


def test_parallel_samples_keep_notes_apart_and_streams_agree(engine):
    params = GREEDY | {"n": 2, "custom_params": {"next": 19}}
    outs = engine.generate(input_ids=PROMPT, sampling_params=params, custom_logit_processor=count_up)
    assert [out.token_ids for out in outs] == [tuple(range(20, 26))] * 2
    assert params["custom_params"] == {"next": 19}
    stream = engine.generate(
        input_ids=PROMPT, sampling_params=GREEDY, custom_logit_processor=count_up, stream=True
    )
    assert list(stream)[-1].token_ids == tuple(range(10, 16))


def test_a_failure_ends_its_requests_only(engine):
    def late(logits, custom_param_list):
        custom_param_list[0]["calls"] = custom_param_list[0].get("calls", 0) + 1
        if custom_param_list[0]["calls"] == 3:
            raise KeyError("nobody expects it")
        return logits

    alone = engine.generate(input_ids=PROMPT, sampling_params=GREEDY | {"max_new_tokens": 40})
    beside = engine.submit(input_ids=PROMPT, sampling_params=GREEDY | {"max_new_tokens": 40})
    failing = engine.submit(input_ids=PROMPT, sampling_params=GREEDY, custom_logit_processor=late)
    seen = []
    with pytest.raises(LogitProcessorError, match=r"late raised KeyError\('nobody.*in late") as caught:
        seen.extend(failing)
    assert max((len(output.token_ids) for output in seen), default=0) <= 2
    assert isinstance(caught.value.__cause__, KeyError)
    assert beside.result(30).token_ids == alone.token_ids


def test_nothing_left_to_choose_is_an_error(engine):
    for value, error in ((-float("inf"), NumericalError), (float("nan"), LogitProcessorError)):
        with pytest.raises(error, match="<lambda>"):
            engine.generate(
                input_ids=PROMPT,
                sampling_params=GREEDY,
                custom_logit_processor=lambda x, _, v=value: torch.full_like(x, v),
            )


def test_what_is_no_processor_is_refused_at_once(engine):
    with pytest.raises(InvalidRequestError, match="to_str"):
        engine.submit(input_ids=PROMPT, custom_logit_processor="Only")
