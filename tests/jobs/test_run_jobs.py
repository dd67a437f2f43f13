"""Jobs from end to end, on an engine that answers with a hash: forms, errors, order, bounds."""

from __future__ import annotations

import gzip
import logging

import pytest

from rootlet import SamplingParams, run_jobs
from rootlet.errors import JobError

from .fake_engine import FakeEngine
from .files import read, write


def test_simple_lines(job):
    lines = [
        {"prompt": "one"},
        {"id": "b", "prompt": [97, 98]},
        {"id": 7, "messages": [{"role": "user", "content": "hi"}], "metadata": {"row": 3}},
    ]
    summary, records, engine = job(lines, order="input")
    assert engine.prompts == ["one", "ab", "<user>hi\n<assistant>"]
    assert [(r["id"], r["index"], r["error"]) for r in records] == [
        (None, 0, None),
        ("b", 1, None),
        (7, 2, None),
    ]
    assert records[0]["text"].startswith("<")
    assert records[0]["finish_reason"] == {"type": "length", "length": 5}
    assert records[0]["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "cached_tokens": 0}
    assert records[2]["metadata"] == {"row": 3}
    assert (summary.total, summary.completed, summary.errors, summary.resumed) == (3, 3, 0, 0)
    assert (summary.prompt_tokens, summary.completion_tokens) == (3 + 2 + 20, 15)
    assert str(job.output) in str(summary)


def test_line_parameters_win_over_the_job_and_the_form(job):
    chat = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions"}
    messages = [{"role": "user", "content": "x"}]
    lines = [
        {"prompt": "a"},
        {"prompt": "a", "sampling_params": {"temperature": 0.25}},
        chat | {"body": {"messages": messages}},
        chat | {"custom_id": "d", "body": {"messages": messages, "temperature": 0.125}},
    ]
    _, _, engine = job(lines, order="input", sampling_params={"top_k": 3})
    assert [(p.temperature, p.max_new_tokens, p.top_k) for p in engine.params] == [
        (1.0, 128, 3),
        (0.25, 128, 3),
        (0.7, None, 3),
        (0.125, None, 3),
    ]


def test_bad_lines_become_records_and_the_others_are_answered(job):
    bad = {
        "not json": "invalid_json",
        '{"prompt": "x"': "invalid_json",
        '["prompt"]': "invalid_json",
        '{"prompt": NaN}': "invalid_json",
        "[" * 100_000: "invalid_json",
        '{"id": "a"}': "invalid_request",
        '{"id": "b", "prompt": "x", "messages": []}': "invalid_request",
        '{"id": "c", "prompt": 5}': "invalid_request",
        '{"id": "d", "prompt": ["x", 5]}': "invalid_request",
        '{"id": "e", "prompt": "x", "temperature": 1}': "unknown_field",
        '{"id": "f", "prompt": "x", "sampling_params": {"temprature": 1}}': "unknown_field",
        '{"id": "g", "prompt": "x", "sampling_params": {"temperature": -1}}': "invalid_parameter",
        '{"id": "h", "prompt": "x", "sampling_params": {"temperature": "hot"}}': "invalid_parameter",
        '{"id": "i", "prompt": "x", "sampling_params": [1]}': "invalid_request",
        '{"id": "j", "prompt": ""}': "invalid_request",
        '{"id": "k", "prompt": "%s"}' % ("x" * 2000): "request_too_long",
        '{"id": "l", "prompt": "\\ud800"}': "invalid_parameter",
        '{"id": "m", "messages": []}': "invalid_request",
        '{"id": "n", "messages": [{"role": "robot", "content": "x"}]}': "invalid_request",
        '{"id": "o", "messages": [{"role": "user", "content": 1}]}': "invalid_request",
        '{"id": "p", "messages": [{"role": "system", "content": "x"}, {"role": "system", "content": "x"}]}': (
            "invalid_request"
        ),
        '{"id": "q", "prompt": "x", "top_logprobs_num": 2}': "invalid_request",
        '{"id": "r", "prompt": "crash"}': "internal_error",
        '{"id": {"a": 1}, "prompt": "x"}': "invalid_request",
        '{"id": "s\\ud800", "prompt": ""}': "invalid_request",
    }
    good = [{"id": f"good {i}", "prompt": f"p{i}"} for i in range(len(bad))]
    lines = [line for pair in zip(bad, good) for line in pair]
    summary, records, engine = job(lines)
    by_index = {r["index"]: r for r in records}
    assert sorted(by_index) == list(range(len(lines)))
    assert [by_index[2 * i]["error"]["code"] for i in range(len(bad))] == list(bad.values())
    assert all(by_index[2 * i]["error"]["message"] for i in range(len(bad)))
    assert all(by_index[2 * i + 1]["text"] for i in range(len(good)))
    assert (summary.total, summary.errors) == (len(lines), len(bad))
    # and a second run has nothing to do
    again, records_again, engine = job(lines)
    assert (again.completed, again.errors, engine.prompts, records_again) == (0, len(bad), [], records)


def test_errors_name_what_is_wrong(job):
    _, records, _ = job(
        [
            {"prompt": "x", "sampling_params": {"temprature": 1}},
            {"prompt": "x", "sampling_params": {"top_p": 2}},
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "user", "content": [{"type": "image_url"}]},
                ]
            },
        ],
        order="input",
    )
    first, second, third = (r["error"]["message"] for r in records)
    assert "'temprature'" in first
    assert "'temperature'" in first
    assert second == "top_p must be in (0, 1], got 2.0."
    assert "messages[1].content[0]" in third


def test_errors_are_broken_down_by_cause(job, caplog):
    bad = {"invalid_json": "{", "unknown_field": '{"temperature": 1}', "request_too_long": '{"prompt": "%s"}'}
    lines = [{"custom_id": "no index in its record", "url": "/v1/completions", "body": {"prompt": ""}}]
    lines += [bad["invalid_json"]] * 7 + [bad["unknown_field"]] * 2 + [{"prompt": "fine"}]
    lines.append({"prompt": "x" * 2000})
    for options in ({}, {"overwrite": True, "order": "input"}, {}):  # the last finds them in the output
        summary, _, _ = job(lines, **options)
        assert summary.errors == sum(cause.count for cause in summary.causes.values()) == 11
        assert {code: (cause.count, cause.lines) for code, cause in summary.causes.items()} == {
            "invalid_request": (1, (1,)),
            "invalid_json": (7, (2, 3, 4, 5, 6)),
            "unknown_field": (2, (9, 10)),
            "request_too_long": (1, (12,)),
        }
        assert str(summary).splitlines()[1:5] == [
            "  invalid_json: 7 (lines 2, 3, 4, 5, 6, ...)",
            "  unknown_field: 2 (lines 9, 10)",
            "  invalid_request: 1 (line 1)",
            "  request_too_long: 1 (line 12)",
        ]
    assert job([{"prompt": "x"}], on_changed="redo")[0].causes == {}
    caplog.clear()
    write(job.input, lines)
    run_jobs(job.input, job.output, engine=FakeEngine(), overwrite=True)
    shown = [message for message in caplog.messages if "the first with" in message]
    assert len(shown) == 4  # as they come, and one of a kind
    assert any(
        message.startswith("Line 2, the first with invalid_json: The line is not") for message in shown
    )


def test_only_failed_lines_are_retried(job):
    lines = [{"id": "good", "prompt": "x"}, {"id": "bad", "prompt": ""}]
    job(lines)
    summary, records, engine = job(lines, retry_errors=True)
    assert (summary.resumed, summary.completed, summary.errors) == (1, 1, 1)
    assert engine.prompts == []  # refused again, before the engine
    assert sorted(r["id"] for r in records) == ["bad", "good"]


def test_blank_lines_bom_crlf_and_gzip(job, tmp_path):
    data = b'\xef\xbb\xbf{"id": 1, "prompt": "a"}\r\n\r\n   \n{"id": 2, "prompt": "b"}'
    for name, content in (("plain.jsonl", data), ("packed.jsonl.gz", gzip.compress(data))):
        (tmp_path / name).write_bytes(content)
        output = tmp_path / (name + ".out")
        summary = run_jobs(tmp_path / name, output, engine=FakeEngine(), progress=False, order="input")
        assert [(r["id"], r["index"]) for r in read(output)] == [(1, 0), (2, 3)]
        assert summary.total == 2


def test_an_empty_input_is_a_finished_job(job):
    summary, records, _ = job(["", ""])
    assert (summary.total, records) == (0, [])


def test_a_damaged_gzip_is_refused(job, tmp_path):
    packed = tmp_path / "in.gz"
    packed.write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 1000)[:-20])
    with pytest.raises(JobError, match="damaged or cut short"):
        run_jobs(packed, job.output, engine=FakeEngine(), progress=False)


def test_samples_of_a_line(job):
    lines = [{"id": "x", "prompt": "ab", "sampling_params": {"n": 3, "seed": 5}}]
    summary, [record], engine = job(lines)
    assert len(record["text"]) == len(record["finish_reason"]) == 3
    assert len(set(record["text"])) == 3  # each sample has its own seed
    assert engine.params[0].seed == 5  # the first one's is that of n=1
    assert record["usage"] == {"prompt_tokens": 2, "completion_tokens": 15, "cached_tokens": 0}
    assert summary.prompt_tokens == 6


def test_a_job_seed_gives_every_line_its_own(job):
    lines = [{"id": i, "prompt": "same"} for i in range(5)] + [
        {"id": "own", "prompt": "same", "sampling_params": {"seed": 1}}
    ]
    _, records, engine = job(lines, sampling_params={"seed": 1})
    assert len({p.seed for p in engine.params}) == 6
    assert 1 in {p.seed for p in engine.params}
    _, shuffled, _ = job(lines[::-1], sampling_params={"seed": 1}, overwrite=True)
    assert {r["id"]: r["text"] for r in records} == {r["id"]: r["text"] for r in shuffled}
    _, other, _ = job(lines, sampling_params={"seed": 2}, overwrite=True)
    texts = {r["id"]: r["text"] for r in other}
    assert all(texts[r["id"]] != r["text"] or r["id"] == "own" for r in records)


def test_every_way_to_write_the_job_seed(job):
    lines = [{"id": i, "prompt": "same"} for i in range(3)]
    texts = {}
    for name, params in {
        "int": {"seed": 3},
        "float": {"seed": 3.0},
        "object": SamplingParams(seed=3),
        "none": {"seed": None},
        "not given": {},
    }.items():
        _, records, _ = job(lines, sampling_params=params, overwrite=True)
        texts[name] = sorted(r["text"] for r in records)
    assert texts["int"] == texts["float"] == texts["object"]
    assert len({tuple(t) for t in texts.values()}) == 3  # drawn afresh for the other two


def test_prefix_order_puts_lines_that_begin_alike_side_by_side(job):
    prompts = [f"topic {i % 5}: question {i}" for i in range(50)]
    lines = [{"prompt": p} for p in prompts]
    _, records, engine = job(lines)
    assert engine.prompts == sorted(prompts)
    assert [r["index"] for r in sorted(records, key=lambda r: r["index"])] == list(range(50))
    _, _, engine = job(lines, order="input", overwrite=True)
    assert engine.prompts == prompts
    _, _, engine = job(lines, window=10, overwrite=True)
    assert engine.prompts == [p for start in range(0, 50, 10) for p in sorted(prompts[start : start + 10])]


def test_conversations_are_ordered_by_their_beginning(job):
    lines = [
        {
            "id": i,
            "messages": [{"role": "system", "content": f"s{i % 2}"}, {"role": "user", "content": str(i)}],
        }
        for i in range(6)
    ]
    _, _, engine = job(lines)
    assert [p.partition("\n")[0] for p in engine.prompts] == ["<system>s0"] * 3 + ["<system>s1"] * 3


def test_an_unfinished_reply_is_continued(job):
    messages = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "One, two"}]
    _, _, engine = job([{"messages": messages}])
    assert engine.prompts == ["<user>count\n<assistant>One, two"]


def test_requests_in_flight_are_bounded(job):
    engine = FakeEngine(shuffled=True)
    summary, records, _ = job([{"prompt": f"p{i}"} for i in range(200)], engine=engine, max_in_flight=7)
    assert summary.completed == len({r["index"] for r in records}) == 200
    assert engine.most_in_flight <= 7


def test_records_are_found_by_index_whatever_finishes_first(job):
    lines = [{"prompt": f"p{i}"} for i in range(100)]
    _, records, _ = job(lines, engine=FakeEngine(shuffled=True), sampling_params={"seed": 1})
    _, ordered, _ = job(lines, order="input", overwrite=True, sampling_params={"seed": 1})
    assert [r["index"] for r in ordered] == list(range(100))
    assert records != ordered
    assert sorted(records, key=lambda r: r["index"]) == ordered


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "random"}, "order must be 'prefix' or 'input'"),
        ({"window": 0}, "window must be"),
        ({"max_in_flight": 0}, "max_in_flight must be at least 1"),
        ({"on_changed": "ignore"}, "on_changed must be"),
        ({"engine_options": {"page_size": 1}}, "yours is built already"),
        ({"model": "x"}, "not both or neither"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(job, options, message):
    with pytest.raises(JobError, match=message):
        job([{"prompt": "x"}], **options)
    assert not job.output.exists()


def test_wrong_sampling_parameters_are_refused_before_anything_runs(job):
    with pytest.raises(ValueError, match="temperature must be non-negative"):
        job([{"prompt": "x"}], sampling_params={"temperature": -1})
    with pytest.raises(TypeError, match="'temperature'"):
        job([{"prompt": "x"}], sampling_params={"temprature": 1})


def test_impossible_files_are_refused(job, tmp_path):
    engine = FakeEngine()
    good = write(tmp_path / "good.jsonl", [{"prompt": "x"}])
    for paths, message in [
        (("-", job.output), "standard input"),
        ((good, "-"), "standard output"),
        ((tmp_path / "none.jsonl", job.output), "does not exist"),
        ((tmp_path, job.output), "not a regular file"),
        ((good, tmp_path), "not a regular file"),
        ((good, tmp_path / "no" / "folder.jsonl"), "does not exist"),
        ((good, good), "same file"),
    ]:
        with pytest.raises(JobError, match=message):
            run_jobs(*paths, engine=engine, progress=False)
    assert engine.prompts == []


def test_an_engine_moved_by_hand_is_refused(job):
    with pytest.raises(JobError, match="step_by_hand"):
        job([{"prompt": "x"}], engine=FakeEngine(step_by_hand=True))


def test_repeated_ids_are_refused_by_name_before_anything_runs(job):
    engine = FakeEngine()
    with pytest.raises(JobError, match="id 'twice' on lines 2 and 4"):
        job(
            [
                {"prompt": "a"},
                {"id": "twice", "prompt": "b"},
                {"id": 3, "prompt": "c"},
                {"id": "twice", "prompt": "d"},
            ],
            engine=engine,
        )
    assert engine.prompts == []
    # without ids equal lines are two lines; 7 and "7" are two ids
    summary, _, _ = job(
        [{"prompt": "a"}, {"prompt": "a"}, {"id": 7, "prompt": "a"}, {"id": "7", "prompt": "a"}]
    )
    assert summary.completed == 4


def test_progress_without_a_terminal_is_in_the_log(job, caplog, monkeypatch):
    monkeypatch.setattr("rootlet.engine.jobs.progress._LOG_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "rootlet")
    write(job.input, [{"prompt": "a"}, {"prompt": ""}])
    run_jobs(job.input, job.output, engine=FakeEngine(), progress=True)
    assert "2 of 2 records" in caplog.messages[-1]
    assert "1 errors (invalid_request 1)" in caplog.messages[-1]


def test_a_terminal_gets_a_bar(job, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    write(job.input, [{"prompt": "a"}, {"prompt": "b"}])
    run_jobs(job.input, job.output, engine=FakeEngine(), progress=True)
    assert "2/2" in capsys.readouterr().err
