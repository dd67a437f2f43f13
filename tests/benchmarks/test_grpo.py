"""The GRPO benchmark runs on its small random model, and its results add up."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")  # of TRL's and its dependencies


def test_a_run_on_both_generations(script, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    grpo = script("grpo")
    out = tmp_path / "out" / "grpo.json"
    size = ["--steps", "10", "--compare-steps", "2", "--prompts", "4", "--generations", "8", "--tokens", "12"]
    arguments = [*size, "--learning-rate", "4e-3", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["grpo.py", *arguments])
    grpo.main()
    [result] = json.loads(out.read_text())
    ours, theirs = result["runs"]
    assert [run["generation"] for run in (ours, theirs)] == ["rootlet", "transformers"]
    assert (len(ours["steps"]), len(theirs["steps"])) == (10, 2)
    assert ours["reward_last"] > ours["reward_first"] + 0.05
    assert 0 < ours["mismatch"] < 1e-5
    assert theirs["mismatch"] is None
    for run in (ours, theirs):
        assert all(step["sync_s"] + step["generate_s"] < step["step_s"] for step in run["steps"])
        assert run["rollouts_per_s"] == pytest.approx(32 / (run["sync_s"] + run["generate_s"]))


def test_a_result_takes_the_place_of_its_model_and_device(script, tmp_path):
    keep = script("grpo").keep
    for device, model, runs in (("cpu", "a", 1), ("cpu", "b", 2), ("gpu", "a", 3), ("cpu", "a", 4)):
        keep({"device": device, "settings": {"model": model}, "runs": runs}, tmp_path / "results.json")
    kept = json.loads((tmp_path / "results.json").read_text())
    assert [result["runs"] for result in kept] == [2, 3, 4]
