"""The compiled loops over the rows of a step against their references."""

from __future__ import annotations

import builtins
import importlib
from array import array

import pytest
from fake_runner import make_submission
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.engine.schedule import row_loops
from rootlet.engine.schedule.request import FinishReason

needs_a_build = pytest.mark.skipif(row_loops.compiled is None, reason="the loops were not compiled")
STATE = (*row_loops.COUNTERS, *row_loops.READ_AT_COMMIT)

SELDOM = st.integers(0, 5).map(lambda number: number == 5)
# how a request stands: computed, decodes_until, output tokens left, ended, watched, bound
KINDS = st.lists(
    st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(1, 3), *[SELDOM] * 3),
    max_size=12,
)


def made(kinds):
    """Requests of these kinds, always the same."""
    requests = []
    for index, (computed, until, left, ended, watched, bound) in enumerate(kinds):
        request = make_submission(str(index), [1, 2, 3], left, stop_ids=frozenset([7] * (index % 2))).request
        request.num_computed_tokens, request.decodes_until = computed, until
        request.num_tokens, request.slot = computed + 1, index * 1000
        request.finish_reason = FinishReason("abort") if ended else None
        request.is_watched, request.constraint = watched, object() if bound else None
        requests.append(request)
    return requests


def states(requests):
    values = [[getattr(request, member) for member in STATE] for request in requests]
    return [
        [value if isinstance(value, (int, array, frozenset)) else value is None for value in v]
        for v in values
    ]


def decoded(loop, requests, drop):
    """What a loop yields and lists, where every yield may take a request off the end (preemption)."""
    running, decodes, seen = list(requests), [], []
    for request in loop(running, decodes):
        seen.append(request.rid)
        if drop:
            running.pop()
    return seen, [request.rid for request in decodes], states(requests)


@needs_a_build
@given(kinds=KINDS, drop=st.booleans())
@settings(max_examples=200, deadline=None)
def test_decoding_agrees_with_its_reference(kinds, drop):
    expected = decoded(row_loops.decode_all_reference, made(kinds), drop)
    assert decoded(row_loops.decode_all, made(kinds), drop) == expected


def taken(loop, requests, places, token_ids, ends):
    """What a loop yields, where a yield may end the request (whose further tokens are nobody's)."""
    seen = []
    for request in loop([requests[place] for place in places], token_ids):
        seen.append((request.rid, list(request.token_ids), request.is_finished))
        if ends:
            request.finish_reason = FinishReason("stop")
    return seen, states(requests)


@needs_a_build
@given(kinds=KINDS, ends=st.booleans(), data=st.data())
@settings(max_examples=200, deadline=None)
def test_taking_tokens_agrees_with_its_reference(kinds, ends, data):
    """Requests with verified drafts stand there several times, also behind others."""
    places = data.draw(st.lists(st.integers(0, len(kinds) - 1), max_size=20)) if kinds else []
    token_ids = data.draw(
        st.lists(st.sampled_from([7, 0, 2**31 - 1]), min_size=len(places), max_size=len(places))
    )
    expected = taken(row_loops.take_all_reference, made(kinds), places, token_ids, ends)
    assert taken(row_loops.take_all, made(kinds), places, token_ids, ends) == expected


@needs_a_build
@given(kinds=KINDS)
@settings(max_examples=50, deadline=None)
def test_columns_agree_with_their_references(kinds):
    requests = made(kinds)
    for member in ("slot", "token_ids", "constraint"):
        found, expected = row_loops.gather(member, requests), row_loops.gather_reference(member, requests)
        assert [a is b for a, b in zip(found, expected, strict=True)] == [True] * len(requests)
    ints = row_loops.gather_ints("slot", requests, -1)
    assert ints == array("i", [request.slot - 1 for request in requests])
    assert ints == row_loops.gather_ints_reference("slot", requests, -1)
    assert ints.typecode == "i"


LOOPS = [row_loops.take_all_reference, row_loops.take_all]


@pytest.mark.parametrize("take_all", LOOPS)
def test_there_must_be_a_token_for_every_request(take_all):
    with pytest.raises(ValueError):
        list(take_all(made([(5, 9, 3, False, False, False)]), []))


@pytest.mark.parametrize("take_all", LOOPS)
def test_a_token_that_is_no_int32_is_refused(take_all):
    (request,) = made([(5, 9, 3, False, False, False)])
    with pytest.raises(OverflowError):
        list(take_all([request], [2**31]))
    assert request.token_ids.tolist() == [1, 2, 3]


@pytest.mark.parametrize("take_all", LOOPS)
def test_the_tokens_of_a_request_may_be_looked_at_meanwhile(take_all):
    """A buffer of them keeps an array from growing; that is an error and no crash."""
    (request,) = made([(5, 9, 3, False, False, False)])
    with memoryview(request.token_ids), pytest.raises(BufferError):
        list(take_all([request], [4]))
    assert list(take_all([request], [4])) == []
    assert request.token_ids.tolist() == [1, 2, 3, 4]


@needs_a_build
def test_misuse_is_refused():
    requests = made([(5, 9, 3, False, False, False)])
    for loop in (row_loops.decode_all, row_loops.take_all):
        with pytest.raises(TypeError, match="no Request"):
            list(loop([*requests, object()], [1, 2]))
    with pytest.raises(AttributeError, match="num_computed"):
        list(row_loops.decode_all([object()], []))
    with pytest.raises(TypeError, match="no Request"):
        row_loops.gather("slot", [*requests, 3])
    with pytest.raises(TypeError, match="is_finished is no slot"):
        row_loops.gather("is_finished", requests)
    del requests[0].pages
    with pytest.raises(AttributeError, match="empty"):
        row_loops.gather("pages", requests)
    requests[0].slot = 2**31
    with pytest.raises(OverflowError):
        row_loops.gather_ints("slot", requests, 0)


def test_without_a_build_the_references_run(monkeypatch):
    def absent(name, package):
        raise builtins.ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    assert row_loops.load() is None
