"""Log-probabilities of drawn tokens, packed and looked at later, against objects made row by row."""

from __future__ import annotations

import threading
from array import array

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.engine.replies.outputs import build_output
from rootlet.engine.replies.snapshots import Snapshots
from rootlet.engine.schedule.batch import StepResult
from rootlet.engine.schedule.logprobs import TokenLogprob, pack_logprobs, unpack_logprobs
from rootlet.engine.schedule.request import LogprobOptions, Request
from rootlet.engine.steps.launched import LaunchedStep, copy_sampled
from rootlet.sampling.params import SamplingParams
from rootlet.sampling.rows import SamplingRow
from rootlet.sampling.sampler import SampleOutput

PARAMS = SamplingParams()


def row(logprobs=True, top=0) -> SamplingRow:
    return SamplingRow(PARAMS, 0, 0, 1, logprobs=logprobs, top_logprobs=top)


@st.composite
def step(draw) -> tuple[list[SamplingRow], SampleOutput]:
    """Rows that ask for lists of different lengths or for nothing, and what was sampled for them."""
    rows = draw(st.lists(st.builds(row, st.booleans(), st.integers(0, 7)), min_size=1, max_size=9))
    width = max((r.top_logprobs for r in rows if r.logprobs), default=0)
    size = len(rows)

    def tensor(values, shape, dtype):
        count = int(np.prod(shape))
        return torch.tensor(draw(st.lists(values, min_size=count, max_size=count)), dtype=dtype).view(shape)

    ids, numbers = st.integers(-1, 2**31 - 1), st.floats(width=32)
    output = SampleOutput(
        tensor(ids, (size,), torch.int64),
        tensor(numbers, (size,), torch.float32) if any(r.logprobs for r in rows) else None,
        tensor(numbers, (size, width), torch.float32) if width else None,
        tensor(ids, (size, width), torch.int64) if width else None,
    )
    return rows, output


def objects(rows, output) -> list[TokenLogprob | None] | None:
    """What is packed, by the rule: one object per row that asks, with as many alternatives as it asks for."""
    if output.logprobs is None:
        return None
    token_ids, logprobs = output.token_ids.tolist(), output.logprobs.tolist()
    values = [()] * len(rows) if output.top_values is None else output.top_values.tolist()
    ids = [()] * len(rows) if output.top_ids is None else output.top_ids.tolist()
    return [
        TokenLogprob(
            logprobs[i],
            token_ids[i],
            tuple(zip(values[i], ids[i]))[: r.top_logprobs] if r.top_logprobs else None,
        )
        if r.logprobs
        else None
        for i, r in enumerate(rows)
    ]


def request_of(row, packed, tokens) -> Request:
    request = Request(
        "r", array("i", [1]), PARAMS, 99, frozenset(), row, LogprobOptions(None, row.top_logprobs)
    )
    request.token_ids.extend(tokens)
    request.collected.output_logprobs += packed
    return request


def output_of(request, num_tokens=None, token_text=None):
    options = {"token_text": token_text, "index": None}
    if num_tokens is None:
        return build_output(request, None, **options)
    return Snapshots(request, None, **options).take(num_tokens, None)


@settings(max_examples=300, deadline=None)
@given(step())
def test_a_step_packs_what_its_rows_ask_for(given_step):
    """None where not asked; own and alternatives' numbers to the bit, NaN and infinities too."""
    rows, output = given_step
    result = LaunchedStep(rows, sampled=copy_sampled(output, {})).wait()
    wanted = objects(rows, output)
    assert isinstance(result, StepResult)
    if wanted is None:
        assert result.logprobs is None
        return
    assert len(result.logprobs) == len(rows)
    for packed, token in zip(result.logprobs, wanted):
        if token is None:
            assert packed is None
            continue
        assert len(packed) == 8 * (1 + len(token.top or ()))
        values, ids = unpack_logprobs([packed])
        assert np.array_equal(values, [token.logprob, *(v for v, _ in token.top or ())], equal_nan=True)
        assert ids == [token.token_id, *(i for _, i in token.top or ())]


@settings(max_examples=100, deadline=None)
@given(top=st.integers(0, 4), count=st.integers(0, 6), shown=st.integers(0, 6), with_text=st.booleans())
def test_outputs_read_as_from_objects(top, count, shown, with_text):
    """Own triples and those of alternatives, with and without text, as many as there were."""
    rng, one = np.random.default_rng(count), row(top=top)
    steps = [
        SampleOutput(
            torch.from_numpy(rng.integers(0, 999, 1)),
            torch.from_numpy(rng.standard_normal(1, dtype=np.float32)),
            torch.from_numpy(rng.standard_normal((1, top), dtype=np.float32)) if top else None,
            torch.from_numpy(rng.integers(0, 999, (1, top))) if top else None,
        )
        for _ in range(count)
    ]
    packed = [LaunchedStep([one], sampled=copy_sampled(step, {})).wait().logprobs[0] for step in steps]
    tokens = [objects([one], step)[0] for step in steps]
    text = str if with_text else None
    request = request_of(one, packed, [token.token_id for token in tokens])
    for num_tokens in (None, shown):
        output, kept = output_of(request, num_tokens, text), tokens[:num_tokens]
        assert output.output_token_logprobs == [
            (t.logprob, t.token_id, text and text(t.token_id)) for t in kept
        ]
        tops = [[(v, i, text and text(i)) for v, i in t.top or ()] for t in kept]
        assert output.output_top_logprobs == (tops if top else None)


def test_a_list_ends_where_the_arrays_do():
    """A vocabulary may be smaller than the list that somebody asks for."""
    rows = [row(top=9), row(top=1)]
    two = np.ones((2, 2), dtype=np.float32)
    packed = pack_logprobs(rows, np.array([3, 4]), two[0], two, np.array([[3, 0], [4, 1]]))
    assert [unpack_logprobs([one])[1] for one in packed] == [[3, 3, 0], [4, 4]]


def test_cut_output_forgets_its_logprobs():
    packed = pack_logprobs([row()] * 4, np.arange(4), np.zeros(4, dtype=np.float32))
    request = request_of(row(), packed, range(4))
    request.truncate(3)
    assert output_of(request).output_token_logprobs == [(0.0, i, None) for i in range(3)]


def test_readers_look_while_it_grows():
    """A reader sees a beginning of what there will be, whole tokens only."""
    packed = pack_logprobs(
        [row(top=2)], np.array([7]), np.ones(1, np.float32), np.ones((1, 2)), np.ones((1, 2))
    )
    request = request_of(row(top=2), packed, [7])
    wrong, done = [], threading.Event()

    def read():
        while not done.is_set():
            count = request.num_output_tokens
            output = output_of(request, count)
            if len(output.output_token_logprobs) != count or {len(t) for t in output.output_top_logprobs} != {
                2
            }:
                wrong.append(output)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(2000):  # as a commit does: log-probabilities first
        request.collected.output_logprobs += packed
        request.token_ids.append(7)
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []
