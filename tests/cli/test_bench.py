"""``bench`` on a tiny random model: what is run, printed and refused. Never how fast it was."""

from __future__ import annotations

import gzip
import json

import pytest

from rootlet.__main__ import main

RECORD = {
    "run_name",
    "batch_size",
    "input_len",
    "output_len",
    "prefill_latency",
    "prefill_throughput",
    "median_decode_latency",
    "median_decode_throughput",
    "total_latency",
    "overall_throughput",
}
LABELS = [
    "Backend:",
    "Successful requests:",
    "Benchmark duration (s):",
    "Total input tokens:",
    "Cached input tokens:",
    "Total generated tokens:",
    "Request throughput (req/s):",
    "Input token throughput (tok/s):",
    "Output token throughput (tok/s):",
    "Total token throughput (tok/s):",
]
GROUPS = ["--gsp-num-groups", "3", "--gsp-prompts-per-group", "4", "--gsp-system-prompt-len", "64",
          "--gsp-question-len", "8", "--gsp-output-len", "5"]  # fmt: skip


@pytest.fixture
def bench(tiny_model, tmp_path, monkeypatch, capsys):
    """``bench(kind, *arguments)`` on the tiny model with dummy weights: (lines printed, records written)."""
    monkeypatch.chdir(tmp_path)

    def run(kind, *arguments, expect=0):
        options = ("--load-format", "dummy", "--max-total-tokens", "4096", "--result-filename", "r.jsonl")
        assert main(["bench", kind, "--model", tiny_model, *options, *map(str, arguments)]) == expect
        path = tmp_path / "r.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return capsys.readouterr().out.splitlines(), records

    return run


def labelled(lines):
    """The lines of the offline table as a dict; the order is that of the labels."""
    begin = next(i for i, line in enumerate(lines) if "Offline Throughput Benchmark Result" in line)
    assert lines[-1] == "=" * 50
    return {line[:40].strip(): line[40:].strip() for line in lines[begin + 1 : -1]}


@pytest.mark.parametrize("overlap", [True, False])
def test_one_batch_times_every_step(bench, overlap):
    flag = "--no-disable-overlap-schedule" if overlap else "--disable-overlap-schedule"
    sizes = ("--batch-size", 1, 5, "--input-len", 33, "--output-len", 9, 3)
    lines, records = bench("one-batch", flag, *sizes, "--run-name", "mine")
    assert [set(record) for record in records] == [RECORD] * 4
    got = [(r["run_name"], r["batch_size"], r["input_len"], r["output_len"]) for r in records]
    assert got == [("mine", batch, 33, new) for batch in (1, 5) for new in (9, 3)]
    for record in records:
        steps, size = record["output_len"] - 1, record["batch_size"]
        assert record["total_latency"] > record["prefill_latency"] > 0
        assert record["total_latency"] > record["median_decode_latency"] * (steps // 2)
        assert record["prefill_throughput"] == pytest.approx(33 * size / record["prefill_latency"])
        assert record["median_decode_throughput"] == pytest.approx(size / record["median_decode_latency"])
        tokens = size * (33 + record["output_len"])
        assert record["overall_throughput"] == pytest.approx(tokens / record["total_latency"])
    shown = [line.split(" latency")[0] for line in lines]
    prefill, decode, median, total = "Prefill.", "Decode. ", "Decode.  median", "Total."
    runs = [[prefill, *[decode] * steps, median, total] for steps in (5, 2)]  # at most five steps are shown
    assert shown == ["Warmup ...", "Benchmark ...", *(runs[0] + runs[1]) * 2]
    assert "median throughput" in lines[8]
    assert lines[2].endswith(" token/s")


def test_one_batch_decodes_the_whole_batch_in_every_step(bench, monkeypatch):
    """Each run is one prefill and ``output_len - 1`` steps of one token for each request."""
    from rootlet.cli import bench_one_batch

    seen = []

    def watched(engine, prompts, num_tokens, inner=bench_one_batch._step_through):
        before = engine.stats()
        start, times = inner(engine, prompts, num_tokens)
        after = engine.stats()
        computed = after.num_computed_tokens - before.num_computed_tokens
        seen.append((len(prompts), num_tokens, computed, len(times)))
        return start, times

    monkeypatch.setattr(bench_one_batch, "_step_through", watched)
    # a chunk of 16: the first of the prompts would be done decoding before the last is computed
    sizes = ("--batch-size", 6, "--input-len", 40, "--output-len", 4)
    bench("one-batch", "--chunked-prefill-size", 16, *sizes)
    prefill, decode = seen[-2:]
    assert prefill[:3] == (6, 1, 240)
    assert prefill[3] > 1
    assert decode == (6, 4, 24, 4)


def test_one_batch_skips_what_does_not_fit(bench):
    sizes = ("--batch-size", 2, 60, "--input-len", 100, "--output-len", 1)
    lines, records = bench("one-batch", *sizes)
    assert "skip (60, 100, 1) due to max batch size limit" in lines
    assert [(r["batch_size"], "median_decode_latency" in r) for r in records] == [(2, False)]


def test_one_batch_profile(bench, tmp_path):
    lines, _ = bench(
        "one-batch", "--input-len", 8, "--output-len", 2, "--profile", "--profile-filename-prefix", "p"
    )
    path = tmp_path / "p_batch1_input8_output2.trace.json.gz"
    assert json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert any(path.name in line for line in lines)


def test_one_batch_correctness(lent_engine, capsys):
    arguments = ["--correctness-test", "--cut-len", "2", "--output-len", "6"]
    assert main(["bench", "one-batch", "--model", "M", *arguments]) == 0
    out = capsys.readouterr().out
    engine = lent_engine.engine
    ids = engine.tokenizer.encode("The capital of France is")
    assert out.startswith(f"input_ids=[{ids}, [")
    assert "prefill logits (first half)" in out
    assert "prefill logits (final)" in out
    text = engine.generate("The capital of France is", {"temperature": 0, "max_new_tokens": 6}).text
    assert f"========== Prompt 0 ==========\nThe capital of France is{text}" in out


def test_offline_random(bench):
    sizes = ("--num-prompts", 20, "--random-input-len", 60, "--random-output-len", 12)
    lines, [record] = bench("offline", "--dataset-name", "random", *sizes)
    table = labelled(lines)
    assert list(table) == LABELS
    assert (table["Backend:"], table["Successful requests:"]) == ("engine", "20")
    assert 20 <= int(table["Total input tokens:"]) < 20 * 60
    assert 20 <= int(table["Total generated tokens:"]) < 20 * 12
    assert record["total_input_tokens"] == int(table["Total input tokens:"])
    both = record["total_input_tokens"] + record["total_output_tokens"]
    assert record["total_throughput"] == pytest.approx(both / record["total_latency"])
    again = bench("offline", "--dataset-name", "random", *sizes)[1][-1]
    assert [again[k] for k in ("total_input_tokens", "total_output_tokens")] == [
        record[k] for k in ("total_input_tokens", "total_output_tokens")
    ]
    exact = ("--random-range-ratio", 1, "--skip-warmup")
    fixed = bench("offline", "--dataset-name", "random", *sizes, *exact)[1][-1]
    assert (fixed["total_input_tokens"], fixed["total_output_tokens"]) == (1200, 240)


def test_shared_prefix_is_offline_with_that_dataset(bench):
    lines, [record] = bench("shared-prefix", *GROUPS)
    table = labelled(lines)
    assert record["total_input_tokens"] == 12 * 72
    assert record["total_output_tokens"] == 12 * 5
    assert record["total_cached_tokens"] >= (12 - 3) * 64  # all but the first of each group
    assert table["Cached input tokens:"] == str(record["total_cached_tokens"])
    dataset = ("--dataset-name", "generated-shared-prefix")
    _, records = bench("offline", *dataset, *GROUPS, "--disable-radix-cache")
    assert records[-1]["total_input_tokens"] == 12 * 72
    assert records[-1]["total_cached_tokens"] == 0


@pytest.fixture
def conversations(tmp_path):
    """A ShareGPT file with three usable conversations."""
    turns = [("What is a cat?", "A small animal."), ("One", "x" * 400), ("Tell me about rain.", "It is wet.")]
    entries = [{"conversations": [{"value": q}, {"value": a}]} for q, a in turns]
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([*entries, {"conversations": [{"value": "no answer"}]}]))
    return path


def test_offline_sharegpt(lent_engine, conversations, capsys):
    tokenizer = lent_engine.engine.tokenizer
    command = ["bench", "offline", "--model", "M", "--dataset-path", str(conversations), "--skip-warmup"]
    assert main([*command, "--sharegpt-output-len", "3"]) == 0
    table = labelled(capsys.readouterr().out.splitlines())
    kept = ["What is a cat?", "Tell me about rain."]  # "One" is a single token
    assert int(table["Total input tokens:"]) == sum(len(tokenizer.encode(text)) for text in kept)
    assert int(table["Total generated tokens:"]) == 3 * len(kept)
    assert main([*command, "--num-prompts", "1", "--apply-chat-template", "--sharegpt-output-len", "2"]) == 0
    assert int(labelled(capsys.readouterr().out.splitlines())["Total generated tokens:"]) == 2
    fixed = ["--dataset-name", "random", "--num-prompts", "5", "--random-input-len", "7"]
    assert main([*command, *fixed, "--random-output-len", "2", "--random-range-ratio", "1"]) == 0
    table = labelled(capsys.readouterr().out.splitlines())
    assert (table["Total input tokens:"], table["Total generated tokens:"]) == ("35", "10")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one-batch", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["one-batch", "--disable-radix-cache"], "prefix cache"),
        (["one-batch", "--cut-len", "3"], "--correctness-test"),
        (["one-batch", "--correctness-test", "--profile"], "--profile"),
        (["one-batch", "--profile-filename-prefix", "p"], "belongs to --profile"),
        (["offline"], "--dataset-path"),
        (["offline", "--dataset-name", "random", "--backend", "runtime"], "--backend must be 'engine'"),
        (["offline", "--dataset-name", "random", "--gsp-num-groups", "2"], "--gsp-num-groups does not apply"),
        (["offline", "--dataset-name", "random", "--apply-chat-template"], "--apply-chat-template does not"),
        (["offline", "--dataset-name", "generated-shared-prefix", "--num-prompts", "2"], "--num-prompts"),
        (["offline", "--dataset-name", "random", "--num-prompts", "0"], "--num-prompts must be at least 1"),
        (["offline", "--dataset-name", "random", "--random-range-ratio", "2"], "must be in [0, 1]"),
        (["offline", "--dataset-path", "no-such-file"], "cannot be read"),
        (["offline", "--dataset-path", __file__], "not a ShareGPT file"),
        (["shared-prefix", "--gsp-output-len", "-1"], "--gsp-output-len must be at least 1, got -1"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(arguments, message, capsys):
    assert main(["bench", *arguments, "--model", "never loaded"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rootlet: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench"], "KIND"),
        (["bench", "serving", "--model", "M"], "invalid choice: 'serving'"),
        (["bench", "one-batch"], "--model"),
        (["bench", "offline", "--model", "M", "--dataset-name", "mmlu"], "--dataset-name"),
        (["bench", "shared-prefix", "--model", "M", "--random-input-len", "3"], "--random-input-len"),
        (["bench", "offline", "--model", "M", "--extra-request-body", "[]"], "not a JSON object"),
    ],
)
def test_usage_errors_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_extra_request_body_reaches_the_sampler(bench, capsys):
    sizes = ("--dataset-name", "random", "--num-prompts", 3, "--random-input-len", 9)
    _, [record] = bench("offline", *sizes, "--extra-request-body", '{"max_new_tokens": 2}')
    assert record["total_output_tokens"] == 6
    bench("offline", *sizes, "--extra-request-body", '{"max_new_tokns": 2}', expect=2)


@pytest.mark.parametrize("kind", ["one-batch", "offline", "shared-prefix"])
def test_help(kind, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["bench", kind, "--help"])
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: rootlet bench {kind} --model PATH")
    assert "examples:" in out
    assert "--page-size" in out
