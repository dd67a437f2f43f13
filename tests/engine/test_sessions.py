"""Sessions: continuing, branching, replacing, dropping, against requests that spell out the whole context."""

from __future__ import annotations

import pytest

import rootlet
from rootlet.engine.requests.sessions import SessionParams, Sessions
from rootlet.errors import InvalidRequestError, UnknownOptionError

GREEDY = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
LONG = GREEDY | {"max_new_tokens": 400}


@pytest.fixture(scope="module")
def engine(tiny_model):
    with rootlet.Engine(
        tiny_model, load_format="dummy", skip_tokenizer_init=True, max_total_tokens=4096, dtype="float32"
    ) as engine:
        yield engine


@pytest.fixture
def session(engine):
    session = engine.open_session()
    yield session
    engine.close_session(session)


def ask(engine, ids, **session_params):
    return engine.generate(
        input_ids=ids, sampling_params=GREEDY, rid=session_params.pop("as_rid", None),
        session_params=session_params or None,
    )  # fmt: skip


def test_a_conversation_equals_the_spelled_out_one(engine, session):
    context, rid = [], None
    for turn in ([5, 6, 7], [8, 9], [10], [11, 12, 13, 14]):
        out = ask(engine, turn, id=session, rid=rid)
        context += turn
        assert out.token_ids == ask(engine, context).token_ids
        assert out.prompt_tokens == len(context)
        context += out.token_ids
        rid = out.rid
    assert out.cached_tokens >= len(context) - len(out.token_ids) - 4 - 1  # all but the newest turn


@pytest.mark.parametrize(("offset", "kept"), [(None, 9), (0, 9), (4, 4), (-1, 8), (100, 9)])
def test_offset_cuts_the_context(engine, session, offset, kept):
    first = ask(engine, [5, 6, 7], id=session)
    context = [5, 6, 7, *first.token_ids][:kept]
    out = ask(engine, [20, 21], id=session, rid=first.rid, offset=offset)
    assert out.prompt_tokens == kept + 2
    assert out.token_ids == ask(engine, [*context, 20, 21]).token_ids


def test_branches_share_their_beginning_only(engine, session):
    root = ask(engine, [5, 6, 7], id=session, as_rid="root")
    left = ask(engine, [30], id=session, rid="root", as_rid="left")
    right = ask(engine, [40], id=session, rid="root", as_rid="right")
    assert left.token_ids == ask(engine, [5, 6, 7, *root.token_ids, 30]).token_ids
    assert right.token_ids == ask(engine, [5, 6, 7, *root.token_ids, 40]).token_ids
    # another root knows nothing of the first
    assert ask(engine, [30], id=session).token_ids == ask(engine, [30]).token_ids


def test_replacing_drops_what_followed(engine, session):
    ask(engine, [5, 6, 7], id=session, as_rid="root")
    ask(engine, [30], id=session, rid="root", as_rid="child")
    ask(engine, [31], id=session, rid="child", as_rid="grandchild")
    ask(engine, [40], id=session, rid="root", as_rid="other", replace=True)
    for gone in ("child", "grandchild"):
        with pytest.raises(InvalidRequestError, match=f"no request '{gone}'"):
            ask(engine, [1], id=session, rid=gone)
    ask(engine, [41], id=session, rid="other", as_rid="last")
    ask(engine, [9], id=session, replace=True, as_rid="afresh")
    with pytest.raises(InvalidRequestError, match=r"It has \['afresh'\]"):
        ask(engine, [1], id=session, rid="root")


def test_an_unfinished_request_is_continued_only_by_replacing_it(engine, session):
    running = engine.submit(
        input_ids=[5, 6, 7], sampling_params=LONG, rid="running", session_params={"id": session}
    )
    with pytest.raises(InvalidRequestError, match="has not finished"):
        ask(engine, [8], id=session, rid="running")
    ask(engine, [8], id=session, rid="running", replace=True)
    assert running.result(30).finish_reason["type"] == "abort"


def test_closing_aborts_and_forgets(engine):
    session = engine.open_session("mine")
    with pytest.raises(InvalidRequestError, match="open already"):
        engine.open_session("mine")
    running = engine.submit(input_ids=[5], sampling_params=LONG, session_params={"id": session})
    engine.close_session(session)
    assert running.result(30).finish_reason["type"] == "abort"
    for call in (lambda: ask(engine, [1], id="mine"), lambda: engine.close_session("mine")):
        with pytest.raises(InvalidRequestError, match="session id mine does not exist"):
            call()
    assert engine.open_session("mine") == "mine"
    engine.close_session("mine")


def test_a_token_that_nobody_asked_for_is_no_context(engine, session):
    first = engine.generate(
        input_ids=[5, 6], sampling_params=GREEDY | {"max_new_tokens": 0}, session_params={"id": session}
    )
    assert ask(engine, [7], id=session, rid=first.rid).prompt_tokens == 3


def test_batches_take_one_place_each(engine, session):
    first, plain = engine.generate(
        input_ids=[[5, 6], [7, 8]], sampling_params=GREEDY, session_params=[{"id": session}, {"id": None}]
    )
    assert ask(engine, [9], id=session, rid=first.rid).prompt_tokens == 2 + 6 + 1
    with pytest.raises(InvalidRequestError, match="no request"):
        ask(engine, [9], id=session, rid=plain.rid)


def test_a_second_beginning_of_text_is_left_out():
    class Ended:
        rid = "a"

        def done(self):
            return True

        def latest(self):
            return None

    sessions = Sessions(bos_token_id=1)
    session = sessions.open()
    parse = SessionParams.parse
    first = sessions.extend(parse({"id": session}), [1, 5])
    assert first.input_ids == [1, 5]
    first.record(Ended())
    assert sessions.extend(parse({"id": session, "rid": "a"}), [1, 6]).input_ids == [1, 5, 6]
    assert sessions.extend(parse({"id": session, "rid": "a"}), [1]).input_ids == [1, 5, 1]


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ("x", InvalidRequestError),
        ({"id": 7}, InvalidRequestError),
        ({"id": "x", "offset": 1.5}, InvalidRequestError),
        ({"id": "x", "ofset": 1}, UnknownOptionError),
        ({"id": "nowhere"}, InvalidRequestError),
    ],
)
def test_bad_places_are_refused(engine, params, error):
    with pytest.raises(error):
        engine.generate(input_ids=[1], sampling_params=GREEDY, session_params=params)


def test_a_session_continues_one_output(engine, session):
    with pytest.raises(InvalidRequestError, match="n=2"):
        engine.generate(
            input_ids=[1], sampling_params=GREEDY | {"n": 2, "temperature": 1}, session_params={"id": session}
        )
