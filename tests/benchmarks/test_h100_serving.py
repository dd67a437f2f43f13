"""Streams under load on a tiny model: every token is counted, and the figures agree with each other."""

from __future__ import annotations

import json
import math

import pytest


@pytest.fixture(scope="module")
def serving(script):
    return script("h100_serving")


def test_a_load_is_measured_and_written(serving, script, tmp_path, capsys):
    asked = ["--quick", "--loads", "50:6,inf:9", "--warm", "4", "--out", str(tmp_path), "--commit", "abc"]
    assert serving.main(asked) == 0
    rows = json.loads((tmp_path / "h100.json").read_text())
    assert len((tmp_path / "h100_history.jsonl").read_text().splitlines()) == len(rows)
    assert {(row["model"], row["commit"]) for row in rows} == {("TINY", "abc")}
    assert "stream inf:9" in capsys.readouterr().out
    lengths = script("h100_workloads").Prompts(2000, 16).mixed(0).output_lengths
    for name, count in (("stream 50:6", 6), ("stream inf:9", 9)):
        values = {row["metric"]: row["value"] for row in rows if row["workload"] == name}
        units = {row["metric"]: row["unit"] for row in rows if row["workload"] == name}
        assert values["output_throughput"] * values["total"] == pytest.approx(sum(lengths[:count]))
        for latency in ("ttft", "itl", "tpot"):
            assert 0 <= values[f"{latency}_p50"] <= values[f"{latency}_p99"] <= 1e3 * values["total"]
            assert units[f"{latency}_p99"] == "ms"
        shares = {metric: value for metric, value in values.items() if metric.startswith("owner_")}
        assert sum(shares.values()) == pytest.approx(100)
        assert {units[metric] for metric in shares} == {"%"}


def test_figures_of_known_readers(serving):
    readers = [
        serving.Reader(10.0, [11.0, 11.5, 12.5], [1, 3, 5]),
        serving.Reader(10.5, [14.0], [1]),
    ]
    found = serving.figures(serving.Load.of("2:2"), readers, {"idle": 100.0})
    assert {figure.workload for figure in found} == {"stream 2:2"}
    assert {figure.metric: figure.value for figure in found} == {
        "total": 4.0,
        "output_throughput": 1.5,
        "ttft_p50": 3500.0,
        "ttft_p99": 3500.0,
        "itl_p50": 1000.0,
        "itl_p99": 1000.0,
        "tpot_p50": 375.0,
        "tpot_p99": 375.0,
        "owner_idle": 100.0,
    }


def test_loads_come_as_they_did_the_last_time(serving):
    load = serving.Load.of("16:500")
    assert load.pauses() == load.pauses()
    assert sum(load.pauses()) == pytest.approx(500 / 16, rel=0.1)
    assert serving.Load.of("inf:3") == serving.Load(math.inf, 3)
    assert serving.Load.of("inf:3").pauses() == [0, 0, 0]
    for wrong in ("16", "0:5", "4:0", "4:1001", "nan:5"):
        with pytest.raises(ValueError):
            serving.Load.of(wrong)


def test_peers_are_held_against_the_rows_they_belong_to(serving, script):
    targets = script("h100_workloads").TARGETS
    metrics = {
        figure.metric
        for figure in serving.figures(serving.Load.of("4:1"), [serving.Reader(0.0, [1.0, 2.0], [1, 2])], {})
    }
    for text in ("4:150", "16:500", "inf:1000"):
        name = str(serving.Load.of(text))
        assert {metric for model, workload, metric in targets if workload == name} == metrics
