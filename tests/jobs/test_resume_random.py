"""Edit the input, cut the output, run again, in any order: the last run always ends like a fresh one."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet import run_jobs

from .fake_engine import FakeEngine
from .files import read

LINE = st.one_of(
    st.builds(lambda i, p: json.dumps({"id": i, "prompt": p}), st.integers(0, 9), st.text(max_size=3)),
    st.builds(lambda p: json.dumps({"prompt": p}), st.text(max_size=3)),
    st.sampled_from(["", "  ", "{", "[]", '{"prompt": 1}']),
)


def unique_ids(lines):
    """Keep the first line of each id: a job refuses repeats."""
    seen = set()
    for line in lines:
        value = json.loads(line).get("id") if line.startswith('{"id"') else None
        if value is None or value not in seen:
            seen.add(value)
            yield line


ROUND = st.tuples(
    st.lists(LINE, max_size=8).map(lambda lines: list(unique_ids(lines))),  # the input from now on
    st.none() | st.floats(0, 1),  # where the output is cut before the run
    st.none() | st.integers(0, 4),  # result at which the run is interrupted
    st.booleans(),  # retry_errors
    st.sampled_from(["prefix", "input"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROUND, min_size=1, max_size=5))
def test_any_history_ends_like_a_fresh_run(rounds):
    with tempfile.TemporaryDirectory() as folder:
        input_path, output, fresh = (Path(folder) / name for name in ("in", "out", "fresh"))
        for lines, cut, interrupt_at, retry_errors, order in rounds:
            input_path.write_text("".join(line + "\n" for line in lines))
            if cut is not None and output.exists():
                data = output.read_bytes()
                output.write_bytes(data[: int(cut * len(data))])
            options = {"sampling_params": {"seed": 1}, "on_changed": "redo", "progress": False}
            with contextlib.suppress(KeyboardInterrupt):
                engine = FakeEngine(interrupt_at=interrupt_at)
                run_jobs(input_path, output, engine=engine, retry_errors=retry_errors, order=order, **options)
        summary = run_jobs(input_path, output, engine=FakeEngine(), **options)
        run_jobs(input_path, fresh, engine=FakeEngine(), **options)
        assert comparable(output) == comparable(fresh)
        assert summary.total == len(read(output)) == sum(bool(line.strip()) for line in lines)


def comparable(path):
    """Records in one order, without the place of a line that has an id: it may have moved since."""
    records = read(path)
    for record in records:
        if record["id"] is not None:
            del record["index"]
    return sorted(map(json.dumps, records))


@pytest.mark.parametrize("name", ["questions.jsonl", "openai_batch.jsonl"])
def test_the_examples_are_good_lines(tmp_path, name):
    path = Path(__file__).parents[2] / "examples" / name
    summary = run_jobs(path, tmp_path / "out.jsonl", engine=FakeEngine(), progress=False)
    assert summary.completed == summary.total > 0
    assert summary.errors == 0
