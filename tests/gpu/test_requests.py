"""Sessions, scores and custom logit processors on the GPU, on one engine with all defaults."""

from __future__ import annotations

import pytest
import torch

import rootlet
from rootlet.errors import LogitProcessorError, NumericalError

from .tiny import build, logit_gaps, logits_after, random_prompt, reference, saved

PROMPT = random_prompt(40, 1)
GREEDY = {"temperature": 0, "max_new_tokens": 10, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with build(saved("llama", tmp_path_factory.mktemp("requests"))) as engine:
        yield engine


# ---- sessions --------------------------------------------------------------------------------------


def test_a_conversation_and_a_branch_of_it(engine):
    """Tokens of spelled-out requests, which are transformers' own; only the newest turn is computed."""
    session = engine.open_session()
    turns = [random_prompt(length, 50 + length) for length in (70, 3, 1, 90)]
    contexts, outputs = [[]], []
    for turn in turns:
        rid = outputs[-1].rid if outputs else None
        outputs.append(ask(engine, turn, id=session, rid=rid))
        contexts.append([*contexts[-1], *turn, *outputs[-1].token_ids])
        prompt = contexts[-1][: -GREEDY["max_new_tokens"]]
        assert outputs[-1].prompt_tokens == len(prompt)
        assert logit_gaps(reference("llama"), prompt, list(outputs[-1].token_ids)).max() < 1e-3
    assert outputs[-1].cached_tokens >= len(contexts[-2]) - 1  # the last output token was never computed
    branch = ask(engine, [5, 6], id=session, rid=outputs[1].rid)
    assert branch.token_ids == ask(engine, [*contexts[2], 5, 6]).token_ids
    shorter = ask(engine, [5, 6], id=session, rid=outputs[1].rid, offset=33)
    assert shorter.token_ids == ask(engine, [*contexts[2][:33], 5, 6]).token_ids
    engine.close_session(session)


def ask(engine, ids, **session_params):
    return engine.generate(input_ids=ids, sampling_params=GREEDY, session_params=session_params or None)


# ---- scores ----------------------------------------------------------------------------------------


def test_scores_equal_transformers(engine):
    """Each log-likelihood within 1e-4 of transformers' on the same GPU; the context is computed once."""
    engine.flush_cache()
    contexts = [random_prompt(length, 70 + length) for length in (1, 33, 300)]
    endings = [random_prompt(length, 80 + length) for length in (1, 2, 40, 129)]
    for context in contexts:
        scores = engine.score(context, endings)
        assert [score.cached_tokens for score in scores[1:]] == [len(context) - 1] * 3
        for ending, score in zip(endings, scores):
            logprobs = torch.log_softmax(logits_after(reference("llama"), context, ending), -1)
            expected = logprobs.gather(1, torch.tensor(ending, device="cuda")[:, None])[:, 0].cpu()
            torch.testing.assert_close(torch.tensor(score.token_logprobs), expected, atol=1e-4, rtol=0)
            assert score.logprob == pytest.approx(expected.sum().item(), rel=1e-5, abs=1e-4)


# ---- custom logit processors -----------------------------------------------------------------------


class Only(rootlet.CustomLogitProcessor):
    def __call__(self, logits, custom_param_list):
        for row, params in zip(logits, custom_param_list):
            row[:] = -float("inf")
            row[params["token_id"]] = 0.0
        return logits


def count_up(logits, custom_param_list):
    """Keeps notes in the request's own dict; waits for the device in the middle of a step."""
    assert logits.is_cuda
    assert logits.dtype == torch.float32
    assert float(logits.sum()) == float(logits.sum())
    for row, params in zip(logits, custom_param_list):
        params["next"] = params.get("next", 9) + 1
        row[params["next"]] = float("inf")
    return logits


def test_processors_in_a_batch_with_and_without(engine):
    plain = engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
    drawn = {"temperature": 1, "max_new_tokens": 10, "seed": 4, "presence_penalty": 1.0, "top_p": 0.9}
    only = Only()
    outputs = engine.generate(
        input_ids=[PROMPT] * 5,
        sampling_params=[
            GREEDY | {"custom_params": {"token_id": 5}},
            GREEDY | {"custom_params": {"token_id": 6}},
            GREEDY,
            drawn,
            drawn | {"custom_params": {"next": 29}},
        ],
        custom_logit_processor=[only, only.to_str(), None, count_up, count_up],
        return_logprob=[True, False, True, True, False],
    )
    assert [output.token_ids for output in outputs] == [
        (5,) * 10,
        (6,) * 10,
        plain.token_ids,
        tuple(range(10, 20)),
        tuple(range(30, 40)),
    ]
    assert [logprob for logprob, *_ in outputs[0].output_token_logprobs] == [0.0] * 10
    assert outputs[2].output_token_logprobs[0][0] < 0


WRONG = {
    "raises": (lambda x, _: x[10**6], LogitProcessorError, "raised IndexError"),
    "on the CPU": (lambda x, _: x.cpu(), LogitProcessorError, "on cpu instead of .* on cuda"),
    "NaN": (lambda x, _: x * float("nan"), LogitProcessorError, "returned NaN"),
    "nothing left": (lambda x, _: torch.full_like(x, -float("inf")), NumericalError, "no token to choose"),
}


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(("processor", "error", "says"), WRONG.values(), ids=WRONG.keys())
def test_a_failing_processor_fails_its_requests_only(engine, processor, error, says, temperature):
    params = GREEDY | {"temperature": temperature}
    alone = engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
    beside = engine.submit(input_ids=PROMPT, sampling_params=GREEDY)
    failing = engine.submit(input_ids=PROMPT[:9], sampling_params=params, custom_logit_processor=processor)
    with pytest.raises(error, match=f"<lambda>.*{says}"):
        failing.result(30)
    assert beside.result(30).token_ids == alone.token_ids
