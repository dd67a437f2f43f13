"""A bit that flips, a file that is cut: found and mended by the next run, or refused and nothing lost."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rootlet import run_jobs
from rootlet.engine.jobs import damaged_lines
from rootlet.engine.jobs.seal import bears_seal, is_sealed, mended, seal
from rootlet.errors import JobError

from .fake_engine import FakeEngine
from .files import read, write

LINES = [
    {"prompt": "no id"},
    {"id": "s", "prompt": "text outside ASCII: é 漢字", "metadata": {"row": [1, {"a": None}]}},
    {
        "custom_id": "c",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": "hi"}]},
    },
    "not json",
]
OPTIONS = {"sampling_params": {"seed": 1}, "progress": False}


def flip(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def comparable(path):
    records = sorted(read(path), key=json.dumps)
    return re.sub(r'"created": \d+', "", json.dumps(records))


@pytest.fixture(scope="module", params=[4, 1], ids=["four records", "one record"])
def finished(request, tmp_path_factory):
    """``(input, output, its bytes, its comparable records)`` of a finished job."""
    folder = tmp_path_factory.mktemp("job")
    input_path, output = write(folder / "in", LINES[: request.param]), folder / "out"
    run_jobs(input_path, output, engine=FakeEngine(), **OPTIONS)
    return input_path, output, output.read_bytes(), comparable(output)


def check_mended(finished, damaged, *, lost):
    input_path, output, data, expected = finished
    output.write_bytes(damaged)
    summary = run_jobs(input_path, output, engine=FakeEngine(), **OPTIONS)
    assert summary.completed <= lost
    assert summary.total == data.count(b"\n")
    assert comparable(output) == expected


@settings(max_examples=120, deadline=None)
@given(st.floats(0, 1, exclude_max=True))
@example(0.0)
@example(0.97)
@example(0.999999)
def test_any_flipped_bit_of_an_output(finished, place):
    data = finished[2]
    check_mended(finished, flip(data, int(place * 8 * len(data))), lost=2)  # two, where a line end is lost


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1))
def test_an_output_cut_anywhere(finished, place):
    data = finished[2]
    check_mended(finished, data[: int(place * len(data))], lost=len(data))


def test_damaged_records_are_named_and_only_they_are_done_again(job, caplog):
    lines = [{"id": i, "prompt": f"p{i}"} for i in range(9)]
    job(lines, order="input", sampling_params={"seed": 1})
    whole = comparable(job.output)
    records = job.output.read_bytes().splitlines(keepends=True)
    for number in (2, 7):
        records[number] = flip(records[number], 8 * 60)
    job.output.write_bytes(b"".join(records))
    assert damaged_lines(job.output) == [3, 8]
    summary, _, engine = job(lines, sampling_params={"seed": 1})
    assert damaged_lines(job.output) == []
    assert engine.prompts == ["p2", "p7"]
    assert (summary.resumed, summary.completed) == (7, 2)
    assert "2 damaged records" in caplog.text
    assert "on its lines 3, 8:" in caplog.text
    assert comparable(job.output) == whole


@pytest.fixture(scope="module", params=[{}, {"seed": 1}], ids=["drawn", "given"])
def begun(request, tmp_path_factory):
    """Input, output, first record, job file, its bytes, all records and the parameters of a job to go on."""
    folder = tmp_path_factory.mktemp("job")
    input_path, output = write(folder / "in", [{"id": i, "prompt": "x"} for i in range(3)]), folder / "out"
    run_jobs(input_path, output, engine=FakeEngine(), progress=False, sampling_params=request.param)
    first = output.read_bytes().partition(b"\n")[0] + b"\n"
    sidecar = folder / "out.job.json"
    return input_path, output, first, sidecar, sidecar.read_bytes(), read(output), request.param


def test_a_job_killed_before_its_first_record_keeps_its_seed(begun):
    input_path, output, _, sidecar, data, records, sampling = begun
    sidecar.write_bytes(data)
    output.write_bytes(b"")
    run_jobs(input_path, output, engine=FakeEngine(), progress=False, sampling_params=sampling)
    assert sorted(map(json.dumps, read(output))) == sorted(map(json.dumps, records))


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1, exclude_max=True))
@example(0.0)
@example(0.999999)
def test_any_flipped_bit_of_a_job_file(begun, place):
    """The seed that a job drew for itself is nowhere else: every bit of it must come back."""
    input_path, output, first, sidecar, data, records, sampling = begun
    sidecar.write_bytes(flip(data, int(place * 8 * len(data))))
    output.write_bytes(first)
    run_jobs(input_path, output, engine=FakeEngine(), progress=False, sampling_params=sampling)
    assert sorted(map(json.dumps, read(output))) == sorted(map(json.dumps, records))
    assert sidecar.read_bytes() == data


def test_a_job_file_that_is_cut_refuses_the_job_and_loses_nothing(job):
    lines = [{"id": i, "prompt": "x"} for i in range(3)]
    _, records, _ = job(lines, sampling_params={"seed": 1})
    output, data = job.output.read_bytes(), job.sidecar.read_bytes()
    for size in (0, 1, 20, len(data) // 2, len(data) - 2):
        job.sidecar.write_bytes(data[:size])
        with pytest.raises(JobError, match="cannot be used"):
            job(lines, sampling_params={"seed": 1})
        assert (job.output.read_bytes(), job.sidecar.read_bytes()) == (output, data[:size])
        summary, forced, _ = job(lines, sampling_params={"seed": 1}, force=True)
        assert (summary.resumed, forced) == (3, records)
        assert job.sidecar.read_bytes() == data


def test_a_foreign_file_in_the_place_of_a_known_output_is_not_taken_for_damage(job):
    job([{"prompt": "x"}])
    for content in ("something precious", "something precious\n", '{"id": 1, "answer": 42}\n' * 3):
        job.output.write_text(content)
        with pytest.raises(JobError, match=r"Line 1 of the output .* is no record of a job"):
            job([{"prompt": "x"}])
        assert job.output.read_text() == content


def test_an_output_of_before_checksums_gets_them(job):
    lines = [{"id": i, "prompt": f"p{i}"} for i in range(4)]
    _, records, _ = job(lines, sampling_params={"seed": 1})
    plain = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records[:3])
    settings_ = json.loads(job.sidecar.read_bytes())["settings"]
    old = json.dumps({"format": 1, "rootlet_version": "0.1.0", "input": "x", "settings": settings_}, indent=1)
    job.output.write_text(plain + '{"id": 3, "in')
    job.sidecar.write_text(old + "\n")
    summary, resumed, engine = job(lines, sampling_params={"seed": 1})
    assert (summary.resumed, engine.prompts) == (3, ["p3"])
    assert resumed == records  # reading checks every checksum
    assert json.loads(job.sidecar.read_bytes())["rootlet_job"] == 2


@given(st.binary(max_size=300).filter(lambda data: b"\n" not in data), st.integers(0))
def test_seals(content, bit):
    line = seal(b'{"a": 1' + content + b"}")
    assert is_sealed(line)
    assert seal(line) == line
    bit %= 8 * len(line)
    changed = flip(line, bit)
    assert not is_sealed(changed)
    assert mended(changed) == line
    if bit >= 8 * (len(line) - 20):
        assert bears_seal(changed)
    for size in range(len(line)):
        assert not is_sealed(line[:size])
