"""``batch`` as a process on the real model: killed, interrupted, resumed."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading

import pytest

from rootlet import run_jobs
from rootlet.__main__ import main

from ..jobs.fake_engine import FakeEngine
from ..jobs.real_engine import OPTIONS, shared_engine

TOPICS = ("rain", "bread", "the moon", "a blue car", "music", "old books", "rivers", "a small dog")
LINES = [{"id": i, "prompt": f"A short story about {TOPICS[i % 8]}, number {i}:"} for i in range(24)]
SAMPLING = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def command(tmp_path, smollm2_gguf):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    options = {"model": smollm2_gguf, "input": tmp_path / "in.jsonl", "output": tmp_path / "out.jsonl"}
    options |= OPTIONS | {"temperature": 0, "max_new_tokens": 12, "max_in_flight": 4}
    flags = [text for name, value in options.items() for text in ("--" + name.replace("_", "-"), str(value))]
    return ["batch", *flags, "--ignore-eos"]


def run_until(command, output, records, sent_signal):
    """Run the command, send the signal once the output has so many records, return the ended process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rootlet", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    stop = threading.Timer(120, process.kill)
    stop.start()
    while process.poll() is None:
        if output.exists() and output.read_bytes().count(b"\n") >= records:
            process.send_signal(sent_signal)
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    process.out, process.err = process.communicate()
    stop.cancel()
    return process


def test_killed_interrupted_and_resumed_equals_uninterrupted(command, tmp_path, smollm2_gguf, capsys):
    output = tmp_path / "out.jsonl"
    for records in (2, 7):
        process = run_until(command, output, records, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, process.err
        assert records <= output.read_bytes().count(b"\n") < len(LINES)
    process = run_until(command, output, 13, signal.SIGINT)
    assert process.returncode == 130, process.err
    assert "Traceback" not in process.err
    done = len(read(output))  # every line is whole
    assert f"{done} of 24 records are in" in process.err
    assert "Run the same job again" in process.err

    # the rest in this process, and the same job never interrupted, on one engine
    engine = shared_engine(str(smollm2_gguf))
    options = {"engine": engine, "sampling_params": SAMPLING, "progress": False}
    summary = run_jobs(tmp_path / "in.jsonl", output, **options)
    assert (summary.resumed, summary.completed, summary.errors) == (done, 24 - done, 0)
    run_jobs(tmp_path / "in.jsonl", tmp_path / "whole.jsonl", **options)

    def answers(path):
        return sorted((r["index"], r["id"], r["key"], r["text"]) for r in read(path))

    assert answers(output) == answers(tmp_path / "whole.jsonl")
    assert [a[0] for a in answers(output)] == list(range(24))

    # finished: no engine is built, nothing is written
    before = output.read_bytes()
    assert main([*command, "--show", "2"]) == 0
    assert output.read_bytes() == before
    out = capsys.readouterr().out
    assert "24 of 24 records (24 from an earlier run)" in out
    assert f"output: {output}" in out
    assert out.count("\n---") == 2


def test_verify_needs_nothing_but_the_output(tmp_path, capsys):
    def verify():
        with pytest.raises(SystemExit) as exit:
            main(["batch", "--verify", str(tmp_path / "out")])
        return exit.value.code, "".join(capsys.readouterr())

    code, message = verify()
    assert code == 2
    assert "does not exist" in message
    (tmp_path / "in").write_text('{"prompt": "x"}\nnot json\n')
    run_jobs(tmp_path / "in", tmp_path / "out", engine=FakeEngine(), progress=False)
    assert verify() == (0, f"{tmp_path / 'out'}: all records are as they were written\n")
    data = (tmp_path / "out").read_bytes()
    (tmp_path / "out").write_bytes(data.replace(b'"index": 1', b'"index": 3') + b'{"id"')
    code, message = verify()
    assert code == 1
    assert "2 damaged lines: 1, 3." in message


def test_error_records_make_the_exit_code_1(lent_engine, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\nnot json\n')
    command = [
        "batch",
        "--model",
        "M",
        "--input",
        str(tmp_path / "in.jsonl"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*command, "--max-new-tokens", "2", "--show", "9", "--no-progress"]) == 1
    out, err = capsys.readouterr()
    assert "2 of 2 records, 1 of them errors\n  invalid_json: 1 (line 2)\n" in out
    assert "error: The line is not valid JSON" in out
    assert "--retry-errors" in err
    assert lent_engine.built_with == [("M", {})]
    assert main([*command, "--max-new-tokens", "3"]) == 2
    assert "sampling_params.max_new_tokens was 2, is 3" in capsys.readouterr().err
