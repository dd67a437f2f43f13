"""Weights that do not fit are refused with the reason, and the old ones serve on."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import rootlet
from rootlet.errors import (
    EngineClosedError,
    EngineThreadError,
    InvalidParameterError,
    NumericalError,
    WeightsError,
)

from ..models.hf import build_hf

PARAMS = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
OPTIONS = {"dtype": "float32", "device": "cpu", "skip_tokenizer_init": True, "max_total_tokens": 256}
K_PROJ = "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture(scope="module")
def model():
    return build_hf("Llama", max_position_embeddings=128, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(folder):
    with rootlet.Engine(str(folder), **OPTIONS) as made:
        yield made


@pytest.fixture(autouse=True)
def the_old_version_serves_on(engine):
    sums, version = engine.weights_checksum(), engine.weights_version
    output = engine.generate(input_ids=[1, 2, 3], sampling_params=PARAMS)
    yield
    assert engine.weights_checksum() == sums
    assert engine.weights_version == version
    assert engine.generate(input_ids=[1, 2, 3], sampling_params=PARAMS).token_ids == output.token_ids
    stats = engine.stats()
    assert stats.num_running == stats.num_waiting == 0


class Sharded(torch.Tensor):
    """Looks like a DTensor."""

    device_mesh = "mesh"


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


WRONG_TENSORS = {
    "missing": (lambda s: without(s, K_PROJ), r"missing \(1\): model\.layers\.1\.self_attn\.k_proj\.weight"),
    "several": (
        lambda s: {**without(s, K_PROJ), "bogus": torch.ones(2), "model.norm.weight": torch.ones(3)},
        r"missing \(1\).*leftover \(1\): bogus; misshapen \(1\): model\.norm\.weight is torch.float32 \[3\]",
    ),
    "twice": (lambda s: [*s.items(), *s.items()], "these names twice"),
    "integers": (
        lambda s: s | {K_PROJ: s[K_PROJ].to(torch.int32)},
        "misshapen.*int32.*expected floating point",
    ),
    "wrapped": (
        lambda s: {f"module.{name}": value for name, value in s.items()},
        r"Did you mean model\.embed_tokens\.weight\? module\.model\.embed_tokens\.weight is its name in",
    ),
    "FSDP": (
        lambda s: {name.replace("layers.1", "layers.1._fsdp_wrapped_module"): v for name, v in s.items()},
        "Did you mean model.layers.1",
    ),
    "compiled": (lambda s: {f"_orig_mod.{name}": value for name, value in s.items()}, "Did you mean model"),
    "adapter": (
        lambda s: (
            s | {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 2)}
        ),
        "a LoRA adapter that was not merged.*merge it first",
    ),
    "base layers": (
        lambda s: {name.replace("q_proj.", "q_proj.base_layer."): value for name, value in s.items()},
        "Did you mean .*q_proj.weight",
    ),
    "part": (
        lambda s: s | {K_PROJ: s[K_PROJ].as_subclass(Sharded)},
        r"is a Sharded, a part of a tensor\. Gather full tensors first",
    ),
    "meta": (lambda s: s | {K_PROJ: s[K_PROJ].to("meta")}, "is on the meta device"),
    "empty": (lambda s: s | {K_PROJ: torch.empty(0)}, "is empty, as parameters are that ZeRO-3"),
    "sparse": (lambda s: s | {K_PROJ: s[K_PROJ].to_sparse()}, "sparse_coo"),
    "no tensor": (lambda s: s | {K_PROJ: [1.0]}, "must be a tensor, got list"),
    "no name": (lambda s: [*s.items(), (3, torch.ones(1))], "A name must be a string, got 3"),
    "no pairs": (lambda s: [torch.ones(1)], "pairs of name and tensor"),
    "nothing": (lambda s: {}, "missing"),
    "not weights": (lambda s: 3, "must be a mapping of names to tensors.*got int"),
}


@pytest.mark.parametrize("form", ["held", "iterated"])
@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_wrong_tensors(engine, model, case, form):
    make, message = WRONG_TENSORS[case]
    source = make(model.state_dict())
    if form == "iterated" and isinstance(source, (dict, list)):
        source = iter(source.items() if isinstance(source, dict) else source)
        message = message.replace("these names twice", "twice")
    with pytest.raises(WeightsError, match=message):
        engine.update_weights(source)


def test_unknown_names_of_a_part_of_the_weights(engine):
    with pytest.raises(WeightsError, match=r"leftover \(1\): q_proj"):
        engine.update_weights({"q_proj": torch.ones(2, 2)}, partial=True)


def test_a_manifest_is_held_against_what_comes(engine, model):
    state = model.state_dict()
    announced = {name: ("float32", value.shape) for name, value in state.items()}
    read = []

    def source():
        for item in state.items():
            read.append(item[0])
            yield item

    with pytest.raises(WeightsError, match="missing"):
        engine.update_weights(source(), expect=without(announced, K_PROJ))
    assert not read
    with pytest.raises(WeightsError, match=f"{K_PROJ} did not come"):
        engine.update_weights(iter(without(state, K_PROJ).items()), expect=announced)
    with pytest.raises(WeightsError, match=r"k_proj.weight is torch.float32.*announced was torch.bfloat16"):
        engine.update_weights(source(), expect=announced | {K_PROJ: ("bfloat16", state[K_PROJ].shape)})
    with pytest.raises(WeightsError, match="must be a dtype and a shape"):
        engine.update_weights(source(), expect={"a": "b"})


def test_values_that_are_not_finite(engine, model):
    state = copy.deepcopy(model.state_dict())
    state[K_PROJ][0, 0] = float("nan")
    for source in (state, iter(state.items())):
        with pytest.raises(NumericalError, match=r"k_proj\.weight"):
            engine.update_weights(source, check_finite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_running": "retract"}, r"on_running must be one of 'abort', 'finish', 'recompute', 'keep'"),
        ({"on_running": "keep"}, r"flush_cache=False"),
        ({"staging": "disk"}, r"staging must be one of 'auto', 'kv', 'host', got 'disk'"),
        ({"staging": "kv", "flush_cache": False}, "needs flush_cache=True"),
        ({"version": 0}, "does not rise"),
        ({"version": 1.5}, "an integer, a string or None"),
        ({"version": True}, "an integer, a string or None"),
        ({"partial": 1}, "partial must be True or False"),
    ],
)
def test_wrong_options(engine, model, options, message):
    with pytest.raises(InvalidParameterError, match=message):
        engine.update_weights(model, **options)
    with pytest.raises(InvalidParameterError, match=message), engine.weight_update(**options):
        pass


def test_wrong_modes_of_a_pause(engine):
    with pytest.raises(InvalidParameterError, match="mode must be one of"):
        engine.pause("in_place")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"offset": 8}, "lie inside"),
        ({"offset": -4}, "lie inside"),
        ({"offset": 2}, "multiple of 4"),
        ({"dtype": "float33"}, "must be a dtype and a shape"),
        ({"shape": "wide"}, "must be a dtype and a shape"),
        ({"offset": "0"}, "an offset in bytes"),
    ],
)
def test_wrong_buckets(engine, entry, message):
    whole = {"name": K_PROJ, "dtype": "float32", "shape": [2], "offset": 0}

    def attempt(buffer, entries):
        with engine.weight_update() as block:
            block.add_bucket(buffer, entries)

    with pytest.raises(WeightsError, match=message):
        attempt(torch.zeros(12, dtype=torch.uint8), [whole | entry])
    with pytest.raises(WeightsError, match=r"one tensor .* of uint8"):
        attempt(torch.zeros(3), [whole])
    with pytest.raises(WeightsError, match="has 'name', 'dtype', 'shape' and 'offset'"):
        attempt(torch.zeros(12, dtype=torch.uint8), [{"name": K_PROJ}])


def test_checkpoints_of_other_models(engine, folder, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        engine.update_weights(tmp_path / "nowhere")
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    for name, changes in {
        "architectures": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
        "vocab_size": {"vocab_size": 96},
    }.items():
        other = tmp_path / name
        other.mkdir()
        (other / "config.json").write_text(json.dumps(config | changes))
        save_file(weights, other / "model.safetensors")
        with pytest.raises(WeightsError, match=f"of another model: {name} is"):
            engine.update_weights(other)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text(json.dumps(config))
    raw = (folder / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(WeightsError):
        engine.update_weights(damaged)
    done, message = engine.update_weights_from_disk(damaged)
    assert not done
    assert message.startswith(("Failed to get weights iterator: ", "Failed to update weights: "))


def test_tied_weights_that_differ(tmp_path):
    model = build_hf("Llama", max_position_embeddings=128, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    state = dict(model.state_dict())
    table = state["model.embed_tokens.weight"]
    with rootlet.Engine(str(tmp_path), **OPTIONS) as engine:
        sums = engine.weights_checksum()
        head = "lm_head.weight"
        differing = state | {head: table + 1}
        for source in (differing, iter(differing.items())):
            with pytest.raises(WeightsError, match="are one weight in this model"):
                engine.update_weights(source)
        assert engine.weights_checksum() == sums
        engine.update_weights(state | {head: table.clone()})
        engine.update_weights(without(state, head))
        assert engine.weights_checksum() == sums


def test_a_buffer_that_carries_no_weight_may_come(engine, model):
    engine.update_weights(
        model.state_dict() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, version="again"
    )
    engine._loop.call(lambda core: setattr(core, "weights_version", 0))  # as it was, for the other tests


def test_on_the_engines_own_thread(engine, model):
    seen = []

    def update(handle):
        try:
            engine.update_weights(model)
        except EngineThreadError as error:
            seen.append(error)

    engine.pause()  # so that it has not ended when the callback is there
    handle = engine.submit(input_ids=[1, 2], sampling_params=PARAMS)
    handle.add_done_callback(update)
    engine.resume()
    handle.result()
    engine.stats()  # behind the callback, on the same thread
    assert len(seen) == 1


def test_after_the_end(folder, model):
    engine = rootlet.Engine(str(folder), **OPTIONS)
    engine.close()
    for call in (lambda: engine.update_weights(model), engine.pause, engine.resume, engine.weights_checksum):
        with pytest.raises(EngineClosedError):
            call()
    with pytest.raises(EngineClosedError), engine.weight_update():
        pass
