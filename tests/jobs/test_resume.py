"""A job stopped at any moment and started again ends with every line answered once, as if never stopped."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rootlet import run_jobs
from rootlet.engine.jobs.output_file import OutputFile
from rootlet.engine.jobs.scratch import Scratch
from rootlet.engine.jobs.sidecar import Sidecar
from rootlet.errors import EngineFailedError, JobError

from .fake_engine import FakeEngine
from .files import read, write

CHAT = {"method": "POST", "url": "/v1/chat/completions"}
LINES = [
    {"prompt": "no id"},
    {"id": "simple", "prompt": "a simple one, with text outside ASCII: é 漢字"},
    {"custom_id": "openai"} | CHAT | {"body": {"messages": [{"role": "user", "content": "hi"}], "n": 2}},
    "not json",
    {"prompt": "no id"},
    {"custom_id": "refused"} | CHAT | {"body": {"messages": []}},
    {"id": 12, "prompt": "last"},
]
CHILD = Path(__file__).with_name("crash_child.py")


def comparable(records):
    """Records in input order, without the one field that tells the time."""
    text = json.dumps(sorted(records, key=lambda r: json.dumps([r.get("id"), r.get("index")])))
    records = json.loads(text)
    for record in records:
        if record.get("response"):
            del record["response"]["body"]["created"]
    return records


@pytest.fixture
def whole(job):
    """Records of the uninterrupted job; the output is gone again, its settings stay out of the way."""
    _, records, _ = job(LINES, sampling_params={"seed": 1})
    assert len(records) == len(LINES)
    job.output.unlink()
    return comparable(records)


@pytest.mark.parametrize("stop", range(6))
def test_ctrl_c_keeps_what_is_finished(job, whole, caplog, stop):
    """``stop`` counts results read: six, two of them samples of one line; two lines have none."""
    with pytest.raises(KeyboardInterrupt):
        job(LINES, engine=FakeEngine(interrupt_at=stop), sampling_params={"seed": 1})
    before = job.output.read_bytes()
    assert f"{len(read(job.output))} of 7 records are in" in caplog.messages[-1]
    summary, records, _ = job(LINES, sampling_params={"seed": 1})
    assert job.output.read_bytes().startswith(before)
    assert summary.resumed == before.count(b"\n")
    assert summary.resumed + summary.completed == len(LINES)
    assert comparable(records) == whole


def test_ctrl_c_aborts_what_is_running(job):
    engine = FakeEngine(shuffled=True, interrupt_at=0)
    with pytest.raises(KeyboardInterrupt):
        job([{"prompt": f"p{i}"} for i in range(50)], engine=engine, max_in_flight=20)
    answered = {r["index"] for r in read(job.output)}
    assert len(engine.prompts) <= 20 + len(answered)
    assert not {int(p[1:]) for p in engine.aborted} & answered


def test_an_engine_that_fails_stops_the_job_and_not_the_next_one(job, whole):
    failure = EngineFailedError("a step raised")
    with pytest.raises(EngineFailedError):
        job(LINES, engine=FakeEngine(interrupt_at=2, interruption=failure), sampling_params={"seed": 1})
    assert not any(r["error"] and r["error"]["code"] == "aborted" for r in read(job.output))
    _, records, _ = job(LINES, sampling_params={"seed": 1})
    assert comparable(records) == whole


def test_output_cut_at_any_byte(job, whole):
    """An append-only file that stopped growing at some moment: whole records, then part of one.

    Every byte of the last record, every 17th of the others.
    """
    job(LINES, sampling_params={"seed": 1})
    data = job.output.read_bytes()
    last = data.rindex(b"\n", 0, -1)
    for size in (*range(0, last, 17), *range(last, len(data))):
        job.output.write_bytes(data[:size])
        summary, records, _ = job(LINES, sampling_params={"seed": 1})
        assert summary.resumed == data[:size].count(b"\n")
        assert comparable(records) == whole


def test_a_seed_drawn_for_the_job_outlives_the_kill(job):
    lines = [{"id": i, "prompt": "same"} for i in range(10)]
    with pytest.raises(KeyboardInterrupt):
        job(lines, engine=FakeEngine(interrupt_at=4))
    seed = json.loads(job.sidecar.read_text())["settings"]["seed"]
    _, resumed, _ = job(lines)
    _, whole, _ = job(lines, sampling_params={"seed": seed}, overwrite=True)
    assert comparable(resumed) == comparable(whole)


def crash_child(*arguments):
    return subprocess.run([sys.executable, CHILD, *map(str, arguments)], capture_output=True, text=True)


def test_sigkill_at_every_record(job, whole):
    """Every run is killed while it writes its second record, of which a piece reaches the file."""
    write(job.input, LINES)
    for done in range(len(LINES) - 1):
        result = crash_child(job.input, job.output, "kill", 2)
        assert result.returncode == -signal.SIGKILL, result.stderr
        data = job.output.read_bytes()
        assert data.count(b"\n") == done + 1
        assert not data.endswith(b"\n")
    _, records, _ = job(LINES, sampling_params={"seed": 1})
    assert comparable(records) == whole


def test_sigkill_while_records_are_being_dropped(job, whole):
    job(LINES, sampling_params={"seed": 1})
    before = job.output.read_bytes()
    result = crash_child(job.input, job.output, "rewrite", 1)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert job.output.read_bytes() == before
    _, records, _ = job(LINES, sampling_params={"seed": 1}, retry_errors=True)
    assert comparable(records) == whole
    assert sorted(p.name for p in job.output.parent.iterdir()) == [
        "in.jsonl",
        "out.jsonl",
        "out.jsonl.job.json",
    ]


def test_a_full_disk_loses_no_record_and_leaves_no_piece(job, whole):
    write(job.input, LINES)
    sizes = []
    for limit in (100, 300, 600, 1200):
        result = crash_child(job.input, job.output, "limit", limit)
        assert result.returncode == 1
        assert re.search(r"JobError: The output .* cannot be written: .*File too large", result.stderr)
        assert "of 7 records are in" in result.stderr
        data = job.output.read_bytes()
        assert data == b"" or data.endswith(b"\n")
        sizes.append(len(data))
    assert sizes == sorted(sizes)
    assert sizes[-1] > 0
    _, records, _ = job(LINES, sampling_params={"seed": 1})
    assert comparable(records) == whole


def test_changed_lines_are_refused_by_name_or_redone(job):
    lines = [{"id": "a", "prompt": "x"}, {"prompt": "y"}, {"id": "c", "prompt": "z"}]
    job(lines, sampling_params={"seed": 1})
    changed = [{"id": "a", "prompt": "new"}, {"prompt": "newer"}, lines[2]]
    before = job.output.read_bytes()
    with pytest.raises(
        JobError, match=r"2 answered lines have changed.*id 'a' \(line 1\), a line without id \(line 2\)"
    ):
        job(changed, sampling_params={"seed": 1})
    assert job.output.read_bytes() == before
    summary, records, engine = job(changed, sampling_params={"seed": 1}, on_changed="redo")
    assert (summary.resumed, summary.completed) == (1, 2)
    assert sorted(engine.prompts) == ["new", "newer"]
    _, fresh, _ = job(changed, sampling_params={"seed": 1}, overwrite=True)
    assert comparable(records) == comparable(fresh)


def test_removed_lines_are_refused_or_dropped(job):
    job([{"id": i, "prompt": "x"} for i in range(3)])
    with pytest.raises(JobError, match="1 records whose lines are not in the input"):
        job([{"id": 0, "prompt": "x"}, {"id": 2, "prompt": "x"}])
    summary, records, _ = job([{"id": 0, "prompt": "x"}, {"id": 2, "prompt": "x"}], on_changed="redo")
    assert [r["id"] for r in records] == [0, 2]
    assert (summary.total, summary.resumed, summary.completed) == (2, 2, 0)


def test_what_is_no_change(job):
    """Order of lines with ids, new lines, key order and white space."""
    job([{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y"}])
    summary, _, engine = job(
        [{"id": "b", "prompt": "y"}, {"id": "c", "prompt": "new"}, '  {"prompt":"x" , "id":"a"}']
    )
    assert (summary.resumed, engine.prompts) == (2, ["new"])


def test_an_input_that_changes_under_the_job(job):
    # longer than what is buffered, so that the file is read after it was changed
    lines = [{"prompt": f"p{i}", "metadata": "x" * 200_000} for i in range(20)]

    class Rewriting(FakeEngine):
        def submit(self, *args, **kwargs):
            if len(self.prompts) == 3:
                write(job.input, lines[:10] + [{"prompt": "other"}] * 10)
            return super().submit(*args, **kwargs)

    with pytest.raises(JobError, match="changed while the job was running: line"):
        job(lines, engine=Rewriting(), order="input")
    assert 3 <= len(read(job.output)) < 20


def test_other_settings_are_refused_by_name_unless_forced(job, tmp_path):
    lines = [{"id": i, "prompt": "x"} for i in range(4)]
    with pytest.raises(KeyboardInterrupt):
        job(lines, engine=FakeEngine(interrupt_at=2), sampling_params={"temperature": 0.5})
    with pytest.raises(JobError, match=r"sampling_params.temperature was 0.5, is 0.25"):
        job(lines, sampling_params={"temperature": 0.25})
    with pytest.raises(JobError, match=r"sampling_params.top_k was None, is 4"):
        job(lines, sampling_params={"temperature": 0.5, "top_k": 4})
    with pytest.raises(JobError, match=r"engine.dtype was 'auto', is 'float32'"):
        job(lines, engine=FakeEngine(dtype="float32"), sampling_params={"temperature": 0.5})
    # speed may change at any time, and so may defaults spelled out by the object form
    job(
        lines,
        engine=FakeEngine(page_size=1, interrupt_at=9),
        sampling_params={"temperature": 0.5},
        order="input",
    )
    summary, _, _ = job(lines, sampling_params={"temperature": 0.25}, force=True)
    assert summary.resumed == 4
    job(lines, sampling_params={"temperature": 0.25})  # forced once, settled since


def test_another_model_is_refused_and_a_moved_one_is_not(job, tmp_path):
    def engine(path):
        engine = FakeEngine()
        object.__setattr__(engine.config, "model_path", str(path))
        return engine

    first, copy, other = (tmp_path / name for name in ("first.gguf", "copy.gguf", "other.gguf"))
    first.write_bytes(b"weights" * 100)
    copy.write_bytes(b"weights" * 100)
    other.write_bytes(b"Weights" * 100)
    lines = [{"prompt": "x"}]
    job(lines, engine=engine(first))
    job(lines, engine=engine(copy))
    with pytest.raises(JobError, match=r"model.digest was .*; model.name was 'copy.gguf', is 'other.gguf'"):
        job(lines, engine=engine(other))


def test_an_output_of_unknown_origin_is_not_touched(job):
    lines = [{"prompt": "x"}]
    for content, message in (
        ("something precious\n", "exists, but not 'out.jsonl.job.json'"),
        ('{"a": 1}\n', "exists, but not 'out.jsonl.job.json'"),
    ):
        job.output.write_text(content)
        with pytest.raises(JobError, match=message):
            job(lines)
        assert job.output.read_text() == content
    with pytest.raises(JobError, match=r"Line 1 of the output .* is no record of a job"):
        job(lines, force=True)
    assert job.output.read_text() == content
    summary, records, _ = job(lines, overwrite=True)
    assert (summary.completed, len(records)) == (1, 1)


def test_an_unreadable_job_file_is_refused(job):
    job([{"prompt": "x"}])
    for text in ("", "[]", '{"format": 99}', '{"format": 1, "settings": {"model": {}}}'):
        job.sidecar.write_text(text)
        with pytest.raises(JobError, match="cannot be used"):
            job([{"prompt": "x"}])


def test_an_output_put_together_by_hand_is_refused(job):
    job([{"id": "a", "prompt": "x"}])
    job.output.write_bytes(job.output.read_bytes() * 2)
    with pytest.raises(JobError, match="answers some lines twice"):
        job([{"id": "a", "prompt": "x"}])


def test_one_job_at_a_time_writes_an_output(job, tmp_path):
    with OutputFile(job.output), pytest.raises(JobError, match="Another running job is writing"):
        job([{"prompt": "x"}])
    link = tmp_path / "link.jsonl"
    link.symlink_to(job.output)
    with OutputFile(link), pytest.raises(JobError, match="Another running job is writing"):
        job([{"prompt": "x"}])
    job([{"prompt": "x"}])


def test_the_lock_survives_a_rewrite(job):
    job([{"id": i, "prompt": "x"} for i in range(3)])
    with OutputFile(job.output) as output:
        output.rewrite(lambda number: number != 1)
        with pytest.raises(JobError, match="Another running job"):
            OutputFile(job.output)
        output.append({"id": "new"})
    assert [r["id"] for r in read(job.output)] == [0, 2, "new"]


def test_a_finished_job_builds_no_engine(job, tmp_path):
    job([{"prompt": "x"}])
    sidecar = Sidecar(job.output, Scratch(job.output))
    settings, _ = sidecar.read()
    sidecar.write(dataclasses.replace(settings, model={"name": "no/such/model"}), job.input, "0")
    summary = run_jobs(job.input, job.output, model="no/such/model", progress=False)
    assert (summary.resumed, summary.completed) == (1, 0)
