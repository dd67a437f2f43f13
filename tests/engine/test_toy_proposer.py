"""A proposer is one class and one registration: drafts from a list, which change steps and nothing else."""

from __future__ import annotations

import random

import pytest
from fake_runner import Recorder, expected_output, make_core, make_submission, run_to_end
from hypothesis import given, settings
from hypothesis import strategies as st

import rootlet
from rootlet.engine.build import proposers

from ..models.hf import build_hf


class FromList:
    """Forecasts outputs from a list of those seen before, by prompt."""

    def __init__(self, seen):
        self.seen = seen

    def takes(self, request):
        return tuple(request.token_ids) in self.seen

    def look_ahead(self, request):
        prompt = request.token_ids[: request.num_prompt_tokens]
        return self.seen[tuple(prompt)][request.num_output_tokens :]


PROMPTS = [[5, 6, 7], [9] * 20, list(range(40, 50)), [3]]
PARAMS = [
    {"temperature": 0},
    {"temperature": 1, "seed": 3},
    {"temperature": 0.7, "seed": 4, "top_p": 0.9, "frequency_penalty": 0.5, "min_new_tokens": 5},
    {"temperature": 1, "seed": 5, "top_k": 9, "repetition_penalty": 1.2},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    build_hf("Llama", max_position_embeddings=256).save_pretrained(path)
    return str(path)


def run(folder, monkeypatch, seen, *, overlap, together):
    """(outputs, steps) with drafts from ``seen``."""
    monkeypatch.setattr(proposers, "PROPOSERS", (lambda config, constraints: FromList(seen),))
    options = {"disable_overlap_schedule": not overlap, "max_total_tokens": 1024}
    params = [one | {"max_new_tokens": 40, "ignore_eos": True} for one in PARAMS]
    with rootlet.Engine(folder, device="cpu", dtype="float32", skip_tokenizer_init=True, **options) as engine:
        if together:
            outputs = engine.generate(
                input_ids=PROMPTS, sampling_params=params, return_logprob=True, top_logprobs_num=2
            )
        else:
            outputs = [
                engine.generate(input_ids=ids, sampling_params=one, return_logprob=True, top_logprobs_num=2)
                for ids, one in zip(PROMPTS, params)
            ]
        return outputs, engine.stats().num_steps


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
def test_drafts_from_a_list_change_no_token(folder, monkeypatch, overlap, together):
    expected, steps = run(folder, monkeypatch, {}, overlap=overlap, together=together)
    right = {tuple(ids): list(output.token_ids) for ids, output in zip(PROMPTS, expected)}
    wrong = {ids: [(token + i % 3) % 97 for i, token in enumerate(known)] for ids, known in right.items()}
    for seen in (right, wrong):
        outputs, fewer = run(folder, monkeypatch, seen, overlap=overlap, together=together)
        for output, want in zip(outputs, expected, strict=True):
            assert output.token_ids == want.token_ids
            assert output.finish_reason == want.finish_reason
            assert [t[1:] for t in output.output_token_logprobs] == [
                t[1:] for t in want.output_token_logprobs
            ]
            assert [t[0] for t in output.output_token_logprobs] == pytest.approx(
                [t[0] for t in want.output_token_logprobs], abs=1e-4
            )
        assert fewer * (3 if seen is right else 1) <= steps


@settings(max_examples=100, deadline=None)
@given(
    page_size=st.sampled_from([1, 4, 16]),
    room=st.integers(90, 300),
    chunk=st.sampled_from([5, 32, None]),
    overlap=st.booleans(),
    errors=st.sampled_from([0.0, 0.1, 0.5]),
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=6),
)
def test_drafts_keep_every_invariant(page_size, room, chunk, overlap, errors, lengths):
    """Preemption, chunks, pages and steps in flight beside drafts that come true, or do not."""
    rng = random.Random(0)
    seen, submissions = {}, []
    for i, (length, new) in enumerate(lengths):
        prompt = [(7 * i + j) % 97 for j in range(length)]
        known = expected_output(prompt, max(new, 1))
        submissions.append((make_submission(str(i), prompt, new, stream=i % 2 == 0), known))
        if i != 1:  # one is nobody's
            seen[tuple(prompt)] = [t if rng.random() >= errors else (t + 1) % 97 for t in known]
    core, _ = make_core(
        num_pages=-(-room // page_size) + 1, page_size=page_size, chunk=chunk, overlap=overlap,
        proposers=[FromList(seen)],
    )  # fmt: skip
    recorders = [Recorder() for _ in submissions]
    for (submission, _), recorder in zip(submissions, recorders):
        core.add(submission, recorder)
    steps = run_to_end(core)
    for (_, known), recorder in zip(submissions, recorders):
        assert recorder.ends == 1
        assert list(recorder.outputs[-1].token_ids) == known
    if errors == 0 and len(lengths) == 1 and lengths[0][1] > 20:
        assert steps < lengths[0][1]
    core.scheduler.cache.flush()
    assert core.scheduler.pool.num_free == core.scheduler.pool.num_pages - 1
