"""A trainer's parameters are views of the engine's memory, where both have the same layout."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

import rootlet
from rootlet.errors import WeightsError
from rootlet.kernels.matrices import packing

from ..models.hf import build_hf

PARAMS = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
OPTIONS = {"dtype": "float32", "device": "cpu", "skip_tokenizer_init": True, "max_total_tokens": 256}
PROMPT = [1, 2, 3, 4]
IDS = torch.arange(40).view(2, 20) % 90


def build(family="Llama", **changes):
    return build_hf(family, max_position_embeddings=128, **changes)


@pytest.fixture
def rows_as_they_are(monkeypatch):
    """Have matrices on the CPU as those on a GPU are."""
    monkeypatch.setattr(packing, "is_multiplied_in_c", lambda dtype: False)


def make_engine(model, tmp_path, **options):
    model.save_pretrained(tmp_path)
    return rootlet.Engine(str(tmp_path), **(OPTIONS | options))


def train(model, make_optimizer, steps=3):
    optimizer = make_optimizer(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()


OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("family", "tied"), [("Llama", False), ("Qwen2", True)])
def test_training_is_the_same_to_the_bit(tmp_path, rows_as_they_are, optimizer, family, tied):
    model = build(family, tie_word_embeddings=tied)
    alone = copy.deepcopy(model)
    with make_engine(model, tmp_path) as engine:
        done = engine.share_weights(model)
        assert (done.version, engine.shares_weights) == (1, True)
        train(alone, OPTIMIZERS[optimizer])
        train(model, OPTIMIZERS[optimizer])
        changed = engine.weights_changed(version=7)
        assert (changed.version, changed.bytes) == (7, 0)
        for name, parameter in alone.named_parameters():
            assert torch.equal(parameter, dict(model.named_parameters())[name]), name
            assert torch.equal(engine.weight(name), parameter), name
        output = engine.generate(input_ids=PROMPT, sampling_params=PARAMS)
        assert output.weights_version == 7
    (tmp_path / "after").mkdir()
    model.save_pretrained(tmp_path / "after")  # the engine is closed, the values are the module's
    with rootlet.Engine(str(tmp_path / "after"), **OPTIONS) as fresh:
        assert fresh.generate(input_ids=PROMPT, sampling_params=PARAMS).token_ids == output.token_ids


def test_the_engine_takes_the_modules_values(tmp_path, rows_as_they_are):
    model = build()
    with make_engine(model, tmp_path) as engine:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        values = copy.deepcopy(model.state_dict())
        engine.share_weights(model)
        assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
        assert all(torch.equal(engine.weight(name), value) for name, value in values.items())


def test_parting(tmp_path, rows_as_they_are):
    model = build()
    with make_engine(model, tmp_path) as engine:
        engine.share_weights(model)
        with pytest.raises(WeightsError, match="shared with a module already"):
            engine.share_weights(model)
        for call in (lambda: engine.update_weights(model), lambda: engine.weight_update().__enter__()):
            with pytest.raises(WeightsError, match=r"would write into the module.*weights_changed\(\)"):
                call()
        engine.unshare_weights()
        engine.unshare_weights()
        sums = engine.weights_checksum()
        train(model, OPTIMIZERS["SGD"], steps=1)
        assert engine.weights_checksum() == sums
        with pytest.raises(WeightsError, match=r"share_weights\(module\) first"):
            engine.weights_changed()
        engine.update_weights(model)


@pytest.mark.parametrize("how", ["bfloat16", "assign"])
def test_parameters_that_left_are_noticed_at_the_next_call(tmp_path, rows_as_they_are, how):
    model = build()
    with make_engine(model, tmp_path) as engine:
        engine.share_weights(model)
        if how == "bfloat16":
            model.bfloat16()
        else:
            model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
        for call in (
            engine.weights_changed,
            lambda: engine.generate(input_ids=PROMPT, sampling_params=PARAMS),
        ):
            with pytest.raises(WeightsError, match="no longer share the engine's memory"):
                call()
        engine.unshare_weights()
        engine.generate(input_ids=PROMPT, sampling_params=PARAMS)


def test_an_update_and_sharing_take_turns(tmp_path, rows_as_they_are):
    """One after the other: else the update would write into the module."""
    model = build()
    with make_engine(model, tmp_path) as engine:
        with engine.weight_update() as update:
            beside = threading.Thread(target=engine.share_weights, args=(model,))
            beside.start()
            assert engine._sharing._turn.locked()
            for name, tensor in model.state_dict().items():
                update.add(name, tensor)
            assert not engine.shares_weights
        beside.join()
        assert engine.shares_weights
        assert engine.weights_version == update.result.version + 1


def test_what_cannot_be_shared(tmp_path, rows_as_they_are):
    model = build()
    with make_engine(model, tmp_path) as engine:
        pointers = {name: p.data_ptr() for name, p in model.named_parameters()}
        wrong = {
            "is torch.bfloat16 on cpu, the engine's torch.float32": copy.deepcopy(model).bfloat16(),
            "Did you mean": torch.nn.ModuleDict({"module": model}),
            "missing": model.model,
        }
        for message, module in wrong.items():
            with pytest.raises(WeightsError, match=message):
                engine.share_weights(module)
        assert pointers == {name: p.data_ptr() for name, p in model.named_parameters()}
        assert not engine.shares_weights


def test_panels_cannot_be_shared(tmp_path):
    """Rows interleaved for the C kernel are no views: refused with the alternative."""
    with make_engine(build(), tmp_path, deterministic=True) as engine:
        with pytest.raises(WeightsError, match=r"in another layout.*update_weights\(module\)"):
            engine.share_weights(build())
        assert not engine.shares_weights
