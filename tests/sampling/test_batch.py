"""Batches put together in bulk equal those built row by row, and rows keep their records apart."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.sampling.batch import SamplingBatch
from rootlet.sampling.params import SamplingParams
from rootlet.sampling.processors import ProcessorGroup
from rootlet.sampling.records import RECORD
from rootlet.sampling.rows import SamplingRow, all_argmax
from tests.sampling.reference_batch import build_by_rows

VOCAB = 3000  # more than top-p looks at first
PROCESSORS = [lambda logits, params: logits, lambda logits, params: logits + 1]


@st.composite
def any_row(draw) -> SamplingRow:
    """A row with any mix of parameters, most of them off most of the time."""
    off = {"temperature": 1.0, "top_k": -1, "top_p": 1.0, "min_p": 0.0}
    asked = {
        "temperature": st.sampled_from([0, 1e-7, 1e-6, 0.1, 0.7, 1.0, 3, 1e29, 1e300]),
        "top_k": st.sampled_from([-1, 1, 2, 50, 299, 300, 301, 1500, 2999, 3000, 2**40, 2**100]),
        "top_p": st.one_of(st.just(1.0), st.floats(1e-12, 1.0)),
        "min_p": st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "repetition_penalty": st.floats(1e-6, 2),
        "min_new_tokens": st.integers(0, 9),
        "logit_bias": st.dictionaries(st.integers(0, 299), st.floats(-100, 100), max_size=3),
    }
    some = draw(st.sets(st.sampled_from(sorted(asked)), max_size=4))
    params = SamplingParams(**off | {name: draw(asked[name]) for name in sorted(some)})
    return SamplingRow(
        params,
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        slot=draw(st.integers(0, 2000)),
        prompt_len=draw(st.integers(1, 2**31 - 1)),
        banned_until_min=draw(st.sampled_from([(), (2,), (2, 9, 2)])),
        logprobs=draw(st.booleans()),
        top_logprobs=draw(st.sampled_from([0, 1, 5, 400, 3000])),
        logprobs_of=draw(st.sampled_from([None, None, "sampled", "tempered", "raw"])),
        sampling_mask=draw(st.sampled_from([False, False, True])),
        processor=draw(st.sampled_from([None, None, None, *PROCESSORS])),
    )


def assert_equal(got, wanted) -> None:
    """The same values, dtypes, shapes and strides, at any depth."""
    assert type(got) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert (got.dtype, got.shape, got.device) == (wanted.dtype, wanted.shape, wanted.device)
        assert got.is_contiguous()
        assert torch.equal(got, wanted)
    elif dataclasses.is_dataclass(wanted):
        for field in dataclasses.fields(wanted):
            assert_equal(getattr(got, field.name), getattr(wanted, field.name))
    elif isinstance(wanted, (ProcessorGroup, tuple)):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted):
            assert_equal(one, other)
    else:
        assert got == wanted


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(any_row(), max_size=12), vocab=st.sampled_from([300, VOCAB]))
def test_equals_row_by_row(rows, vocab):
    """Tensor by tensor; of rows that were in a batch before as well, and for another vocabulary."""
    for width in (vocab, 300, VOCAB):
        assert_equal(SamplingBatch.build(rows, width, "cpu"), build_by_rows(rows, width))


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(any_row(), max_size=4))
def test_all_argmax_is_what_the_batch_says(rows):
    """Whoever asks for nothing but the highest logit: no draws, no edits, no log-probabilities, no masks."""
    batch = SamplingBatch.build(rows, VOCAB, "cpu")
    asked = batch.logprobs.count or batch.model_logprobs or batch.kept
    plain = batch.greedy.count == batch.size and not (asked or batch.changes_logits)
    assert all_argmax(rows) == plain


def test_a_row_in_another_slot_has_another_record():
    row = SamplingRow(SamplingParams(repetition_penalty=1.5), seed=3, slot=0, prompt_len=4)
    before = row.record
    moved = replace(row, slot=7)
    assert row.record is before
    assert moved.record != before
    assert moved == replace(row, slot=7)
    assert SamplingBatch.build([row, moved], 300, "cpu").penalties.slots.tolist() == [0, 7]


def test_records_are_elements_of_arrays():
    row = SamplingRow(SamplingParams(), seed=3, slot=0, prompt_len=4)
    assert len(row.record) == RECORD.itemsize


@pytest.mark.parametrize("name", ["repetition_penalty", "frequency_penalty", "temperature"])
def test_numbers_are_rounded_to_fp32_as_torch_rounds_them(name):
    values = [0.1, 1 / 3, 1.7000000001, 1.00000006, 1e-3, 1.9999999999999998]
    rows = [SamplingRow(SamplingParams(**{name: value}), 0, 0, 1) for value in values]
    assert_equal(SamplingBatch.build(rows, 300, "cpu"), build_by_rows(rows, 300))
