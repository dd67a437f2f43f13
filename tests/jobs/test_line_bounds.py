"""What one line may be: whatever it holds, it is one error record, and the lines beside it are answered."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootlet import SamplingParams, run_jobs
from rootlet.engine.jobs import bounds, openai_lines
from rootlet.engine.jobs.bounds import MAX_DEPTH, MAX_VALUES, refusal
from rootlet.errors import JobError

from .fake_engine import FakeEngine
from .files import read


def run_beside_good_lines(tmp_path, lines):
    """The errors of ``lines``, each of which stands between good ones; a second run must agree."""
    data = b'{"prompt": "first"}\n' + b"".join(line + b'\n{"prompt": "good"}\n' for line in lines)
    input_path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    input_path.write_bytes(data)
    summary = run_jobs(input_path, output, engine=FakeEngine(), progress=False)
    assert (summary.total, summary.completed) == (2 * len(lines) + 1,) * 2
    records = sorted(read(output), key=lambda record: record["index"])
    assert not any(record["error"] for record in records[::2])
    again = run_jobs(input_path, output, engine=FakeEngine(), progress=False)
    assert (again.completed, again.causes) == (0, summary.causes)
    return [record["error"] for record in records[1::2]]


def nest(depth, inner="1"):
    return "[" * depth + inner + "]" * depth


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 950, 3_000, 200_000])
def test_deep_lines_are_error_records(tmp_path, depth):
    deep, objects = nest(depth), '{"a":' * depth + "1" + "}" * depth
    lines = [
        f'{{"prompt": "x", "metadata": {deep}}}',
        f'{{"prompt": "x", "metadata": {objects}}}',
        f'{{"prompt": "x", "sampling_params": {{"json_schema": {objects}}}}}',
        f'{{"prompt": "x", "sampling_params": {objects}}}',
        f'{{"id": {deep}, "prompt": "x"}}',
        f'{{"messages": {deep}}}',
        f'{{"url": "/v1/chat/completions", "body": {{"messages": {deep}}}}}',
        deep,
        deep[:depth],
        f'{{"prompt": "\\\\\\"[", "metadata": {deep}}}',
    ]
    errors = run_beside_good_lines(tmp_path, [line.encode() for line in lines])
    assert {error["code"] for error in errors} == {"invalid_json"}
    assert all(f"at most {MAX_DEPTH}" in error["message"] for error in errors)


def test_a_line_at_the_bound_is_answered_as_it_came(tmp_path):
    metadata = json.loads(nest(MAX_DEPTH - 1))
    # the log-probability that is not finite makes the record be walked before it is written
    line = {"prompt": "x", "metadata": metadata, "return_logprob": True, "top_logprobs_num": 2}
    (tmp_path / "in").write_text(json.dumps(line) + "\n")
    run_jobs(tmp_path / "in", tmp_path / "out", engine=FakeEngine(), progress=False)
    [record] = read(tmp_path / "out")
    assert record["metadata"] == metadata
    assert record["error"] is None


def test_brackets_in_strings_are_no_depth(tmp_path):
    prompt = "[{" * 300 + '\\"[' * 200
    [error] = run_beside_good_lines(tmp_path, [json.dumps({"prompt": prompt}).encode()])
    assert error["code"] == "request_too_long"  # so it was read


@given(
    st.recursive(
        st.none() | st.text('[]{},:"\\0a', max_size=4) | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text('[{"\\,', max_size=3), inner, max_size=3)
        ),
        max_leaves=40,
    ),
    st.booleans(),
)
def test_depth_is_counted_as_a_reader_would(value, ascii_only):
    def depth(value):
        if isinstance(value, (list, dict)):
            return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)
        return 0

    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "MAX_DEPTH", depth(value))
        assert refusal(text) is None
        if depth(value):
            patch.setattr(bounds, "MAX_DEPTH", depth(value) - 1)
            assert f"it nests {depth(value)} levels" in refusal(text)


def test_any_stack(tmp_path):
    """Wherever on the caller's stack: the job is done, deep line and all, or refused as a whole."""
    for name, depth in (("in", 900), ("fits", MAX_DEPTH - 1)):
        (tmp_path / name).write_text(f'{{"prompt": "x", "metadata": {nest(depth)}}}\n{{"prompt": "y"}}\n')
    outcomes = []

    def call(name, frames):
        if frames:
            return call(name, frames - 1)
        output = tmp_path / "out"
        try:
            summary = run_jobs(tmp_path / name, output, engine=FakeEngine(), progress=False, overwrite=True)
            outcomes.append(summary.errors)
        except JobError as error:
            outcomes.append("refused" if "calls deep" in str(error) else str(error))

    here = len(__import__("inspect").stack(0))
    for name, errors in (("in", 1), ("fits", 0)):
        outcomes.clear()
        for frames in range(0, sys.getrecursionlimit() - here - 40, 25):
            call(name, frames)
        assert set(outcomes) == {errors, "refused"}
        assert outcomes == sorted(outcomes, key=lambda outcome: outcome == "refused")


ODD = {
    b'{"prompt": "\xff"}': ("invalid_json", "not UTF-8"),
    b'\xef\xbb\xbf{"prompt": "x"}': ("invalid_json", "not valid JSON"),
    b'{"prompt": "a\0b"}': ("invalid_json", "not valid JSON"),
    b'{"prompt": "x", "metadata": 1%s}' % (b"0" * 1_000_000): ("invalid_json", "more than 1,000 digits"),
    b'{"prompt": "x", "metadata": 0.%s}' % (b"1" * 1_000_000): ("invalid_json", "more than 1,000 digits"),
    b'{"id": %s, "prompt": "x"}' % (b"9" * 4400): ("invalid_json", "more than 1,000 digits"),
    b'{"prompt": "x", "metadata": 1e999}': ("invalid_json", "1e999 is out of range"),
    b'{"prompt": "x", "metadata": -Infinity}': ("invalid_json", "-Infinity is not JSON"),
    b'{"prompt": "x", "prompt": "y"}': ("invalid_json", "'prompt' is given twice"),
    b'{"prompt": "x", "metadata": [{"a": {}, "a": {}}]}': ("invalid_json", "'a' is given twice"),
    b'{"prompt": "x"}\r{"prompt": "y"}': ("invalid_json", "not CR"),
    b'{"id": "%s", "prompt": "x"}' % (b"i" * 2000): ("invalid_request", "at most 1024 characters"),
    b'{"id": 1.5, "prompt": "x"}': ("invalid_request", "'id' must be"),
    b'{"id": true, "prompt": "x"}': ("invalid_request", "'id' must be"),
    b'{"custom_id": 7, "url": "/v1/completions", "body": {"prompt": "x"}}': (
        "invalid_request",
        "must be a string",
    ),
    b'{"%s": 1}' % (b"n" * 1_000_000): ("unknown_field", "Unknown field"),
    b'{"prompt": "x", "sampling_params": {"%s": 1}}' % (b"n" * 1_000_000): ("unknown_field", "Unknown"),
    b'{"messages": [{"role": "%s", "content": "x"}]}' % (b"r" * 1_000_000): ("invalid_request", "role"),
    b'{"url": "/v1/completions", "body": {"prompt": [%s"x"], "n": 1024}}' % (b'"x",' * 99): (
        "invalid_request",
        "102,400 answers",
    ),
    b"nul": ("invalid_json", "not valid JSON"),
    b"7": ("invalid_json", "not an object"),
}


def test_odd_lines(tmp_path):
    errors = run_beside_good_lines(tmp_path, list(ODD))
    assert [error["code"] for error in errors] == [code for code, _ in ODD.values()]
    for error, (_, text) in zip(errors, ODD.values()):
        assert text in error["message"]
        assert len(error["message"]) <= 2000


def test_a_line_of_millions_of_values(tmp_path):
    keys = ",".join(f'"{i}":0' for i in range(MAX_VALUES + 1)).encode()
    lines = [b'{"prompt": [%s0]}' % (b"1," * MAX_VALUES), b'{"prompt": "x", "metadata": {%s}}' % keys]
    errors = run_beside_good_lines(tmp_path, lines)
    assert all("at most 2,000,000" in error["message"] for error in errors)
    text = json.dumps({"prompt": "," * (MAX_VALUES + 1)}).encode()
    assert refusal(text) is None  # commas of a text are no values


def test_a_line_too_long_to_be_held(tmp_path):
    long = b'{"prompt": "%s"}' % (b"x" * (65 << 20))
    errors = run_beside_good_lines(tmp_path, [long])
    assert [error["code"] for error in errors] == ["line_too_long"]


# every field of both line forms, with a value of any kind
_SAMPLING_NAMES = sorted(field.name for field in dataclasses.fields(SamplingParams))
_BODY_NAMES = sorted({*openai_lines._CHAT_FIELDS, *openai_lines._COMPLETION_FIELDS})
_VALUES = st.none() | st.booleans() | st.integers(-9, 9) | st.just(1.5) | st.text(max_size=3)
_VALUES |= st.lists(_VALUES, max_size=2) | st.dictionaries(st.text(max_size=2), _VALUES, max_size=2)
_SAMPLING = st.dictionaries(
    st.sampled_from(_SAMPLING_NAMES),
    _VALUES,
    max_size=3,
)
_SIMPLE = st.fixed_dictionaries(
    {},
    optional={
        "id": st.none(),
        "prompt": _VALUES | st.just("x"),
        "messages": _VALUES
        | st.lists(st.fixed_dictionaries({"role": _VALUES, "content": _VALUES}), max_size=2),
        "sampling_params": _VALUES | _SAMPLING,
        "metadata": _VALUES,
        "return_logprob": _VALUES,
        "logprob_start_len": _VALUES,
        "top_logprobs_num": _VALUES,
    },
)
_BODY = st.dictionaries(
    st.sampled_from(_BODY_NAMES),
    _VALUES | st.just("x"),
    max_size=5,
)
_OPENAI = st.fixed_dictionaries(
    {"url": st.sampled_from(["/v1/chat/completions", "/v1/completions"]) | _VALUES, "body": _BODY | _VALUES},
    optional={"method": _VALUES},
)


@given(st.lists(_SIMPLE | _OPENAI, min_size=1, max_size=20))
def test_fields_of_wrong_types_are_error_records(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("types")
    (folder / "in").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = run_jobs(folder / "in", folder / "out", engine=FakeEngine(), progress=False)
    assert summary.completed == len(lines)
    assert "internal_error" not in summary.causes, read(folder / "out")
