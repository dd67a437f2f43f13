"""Layers whose weights pass through buffers: the same logits to the bit, loads and reads at their home."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch

import rootlet
from rootlet.errors import ConfigError
from rootlet.kernels.host_copies import InlineCopies
from rootlet.kernels.matrices import packing
from rootlet.kernels.matrices.dense import DenseMatrix
from rootlet.models.build import build_model
from rootlet.models.layers import offload as offloading
from rootlet.models.layers.offload import GIB, choose, offload
from rootlet.models.layers.slots import stores_of
from rootlet.models.loader import load_model
from rootlet.models.registry import resolve

from .driver import Driver
from .hf import build_hf, build_ours, config_of, one_thread, random_ids, state_of  # noqa: F401

NUM_LAYERS = 5
IDS = random_ids(30, seed=1)


class LateCopies(InlineCopies):
    """Copies made at the last moment, as a busy device would: when somebody waits for them."""

    def __init__(self):
        self.pending = {}

    def start(self, slot, target, source):
        assert slot not in self.pending, "a buffer was given a second copy before the first was waited for"
        self.pending[slot] = (target, source)

    def wait(self, slot):
        target, source = self.pending.pop(slot)
        target.copy_(source)


class LostCopies(InlineCopies):
    """Copies that never arrive: what the others show is shown by copies."""

    def start(self, slot, target, source):
        target.zero_()


@pytest.fixture(autouse=True)
def rows_as_they_are(monkeypatch):
    """Resident weights laid out as offloaded ones are, so that one product computes both: as on a GPU."""
    monkeypatch.setattr(packing, "is_multiplied_in_c", lambda dtype: False)


@pytest.fixture(scope="module", params=["Llama", "Qwen2"])
def hf(request):
    return build_hf(request.param, num_hidden_layers=NUM_LAYERS)


def build_offloaded(hf, num_layers, copies=None, dtype=torch.float32):
    """Our model with so many layers offloaded, without weights; and its copies."""
    config = config_of(hf)
    model = build_model(resolve(config.architectures), config, dtype, "cpu")
    copies = copies or InlineCopies()
    num_bytes = num_layers * layer_bytes(model) if num_layers else 0
    model.layers = offload(model.layers, num_bytes, model.device, lambda device, slots: copies)
    return model, copies


def layer_bytes(model) -> int:
    """Bytes of layer 0, each tensor beginning at a multiple of 512."""
    stores = stores_of(model.layers[0].weights())
    return sum(-(-torch.Size(s.shape).numel() * s.dtype.itemsize // 512) * 512 for s in stores)


def logits_of(model) -> torch.Tensor:
    """Prefill in two chunks, then each token of a decode."""
    driver = Driver(model, page_size=4)
    parts = [driver.run("a", IDS[:20], chunk=13)]
    return torch.cat(parts + [driver.step({"a": [token]})["a"] for token in IDS[20:]])


@pytest.mark.parametrize("copies", [InlineCopies, LateCopies])
@pytest.mark.parametrize("num_layers", range(NUM_LAYERS + 1))
def test_logits_are_those_of_a_resident_model(hf, num_layers, copies):
    """Copies made at once show a buffer written too early, late ones a layer that did not wait."""
    model, made = build_offloaded(hf, num_layers, copies())
    model.load_weights(state_of(hf).items())
    assert torch.equal(logits_of(model), logits_of(build_ours(hf)))
    assert not getattr(made, "pending", None), "a pass left a copy behind"


def test_weights_come_by_copies_only(hf):
    model, _ = build_offloaded(hf, 1, LostCopies())
    model.load_weights(state_of(hf).items())
    assert not torch.equal(logits_of(model), logits_of(build_ours(hf)))


@pytest.mark.parametrize("num_layers", [2, NUM_LAYERS])
def test_loading_again_writes_to_the_same_host_memory(hf, num_layers):
    model, _ = build_offloaded(hf, num_layers)
    names = list(model.weight_shapes)
    assert model.weight_nbytes == 0
    assert model.get_weight(names[1]) is None
    model.load_weights(state_of(hf).items())
    addresses = {name: model.get_weight(name).data_ptr() for name in names}
    logits_of(model)
    other = build_hf(type(hf).__name__.removesuffix("ForCausalLM"), seed=1, num_hidden_layers=NUM_LAYERS)
    model.load_weights(reversed(list(state_of(other).items())))
    assert {name: model.get_weight(name).data_ptr() for name in names} == addresses
    for name, tensor in state_of(other).items():
        assert torch.equal(model.get_weight(name), tensor), name
    assert torch.equal(logits_of(model), logits_of(build_ours(other)))


def test_a_pass_that_fails_disturbs_no_later_one(hf):
    """It ends while the weights of later layers are in the buffers."""
    model, _ = build_offloaded(hf, NUM_LAYERS)
    model.load_weights(state_of(hf).items())
    inner = model.layers[2]._layer
    forward = type(inner).forward

    class Failing:
        def forward(self, *args):
            forward(inner, *args)
            raise MemoryError("in the middle")

    model.layers[2]._layer = Failing()
    with pytest.raises(MemoryError, match="in the middle"):
        logits_of(model)
    model.layers[2]._layer = inner
    assert torch.equal(logits_of(model), logits_of(build_ours(hf)))


def test_a_load_needs_the_memory_of_the_home_alone(hf):
    """Rows of a merged matrix wait in its home; nothing the size of a model is staged."""
    model, _ = build_offloaded(hf, NUM_LAYERS)
    total = sum(tensor.nbytes for tensor in state_of(hf).values())
    seen = []

    def stream():
        for item in state_of(hf).items():
            yield item
            seen.append(model.weight_nbytes)

    model.load_weights(stream())
    assert max(seen) <= model.weight_nbytes == total


def test_rows_of_an_offloaded_layer_are_whole_on_both_sides():
    """bf16 on the CPU is otherwise kept in panels; a home is laid out as the GPU reads it."""
    hf = build_hf("Llama", num_hidden_layers=2)
    model, _ = build_offloaded(hf, 2, dtype=torch.bfloat16)
    model.load_weights(state_of(hf).items())
    matrix = model.layers[1]._layer.attention.output.segments[0].matrix
    assert isinstance(matrix, DenseMatrix)
    logits_of(model)
    home = model.get_weight("model.layers.1.self_attn.o_proj.weight")
    assert torch.equal(matrix.dense(), home)
    assert matrix.dense().data_ptr() != home.data_ptr()
    assert matrix.dense().data_ptr() % 512 == model.layers[1]._weight_stream._buffers[0].data_ptr() % 512


@pytest.mark.parametrize(
    ("count", "wanted", "chosen"),
    [
        (4, 0, []),
        (4, 1, [3]),
        (4, 10, [3]),
        (4, 11, [1, 3]),
        (6, 30, [1, 3, 5]),
        (5, 30, [0, 2, 4]),
        (4, 40, [0, 1, 2, 3]),
        (4, 41, [0, 1, 2, 3]),
    ],
)
def test_layers_are_chosen_evenly_until_the_bytes_are_reached(count, wanted, chosen):
    assert choose([10] * count, wanted) == chosen


def test_uneven_layers_count_by_their_bytes():
    for sizes in itertools.product((1, 5, 20), repeat=4):
        for wanted in range(1, sum(sizes) + 1):
            chosen = choose(sizes, wanted)
            assert sum(sizes[i] for i in chosen) >= wanted
            assert chosen == sorted(set(chosen))


def test_what_was_moved_is_logged(hf, caplog):
    with caplog.at_level(logging.INFO, "rootlet.models"):
        build_offloaded(hf, 3)
    [record] = caplog.records
    assert record.levelname == "INFO"
    assert "3 of 5 layers" in record.message
    _, _, moved, buffers, _ = record.args
    assert moved * 2 == pytest.approx(buffers * 3)
    model = build_ours(hf)
    assert moved * GIB == 3 * layer_bytes(model)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_an_amount_that_frees_nothing_is_warned_about(hf, num_layers, caplog):
    build_offloaded(hf, num_layers)
    assert "frees no memory" in caplog.text


def test_offloading_comes_before_loading(hf):
    with pytest.raises(AssertionError, match="before its first rows"):
        build_ours(hf).offload_layers(1)


def test_more_than_the_host_has_is_refused(hf, monkeypatch):
    monkeypatch.setattr(offloading, "free_host_memory", lambda: 1000)
    config = config_of(hf)
    model = build_model(resolve(config.architectures), config, torch.float32, "cpu")
    with pytest.raises(ConfigError, match=r"cpu_offload_gb would move .* GiB are free\. Lower it"):
        model.offload_layers(2**40)
    assert model.weight_nbytes == 0


def test_the_loader_offloads_before_it_loads(hf, tmp_path):
    hf.save_pretrained(tmp_path)
    plain = load_model(tmp_path)
    moved = load_model(tmp_path, cpu_offload_gb=3 * layer_bytes(plain.model) / GIB)
    assert [type(layer).__name__ for layer in moved.model.layers].count("PreNormLayer") == 2
    assert torch.equal(logits_of(moved.model), logits_of(plain.model))


def test_a_model_class_without_layers_to_offload_is_refused(hf, tmp_path):
    class Own:
        forward = compute_logits = load_weights = get_weight = kv_spec = set_context_length = lambda self: (
            None
        )

        def __init__(self, config, dtype, device):
            pass

    rootlet.register_model("OwnForOffload", Own, replace=True)
    hf.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"cpu_offload_gb=2 .* offload_layers, .* Own has none"):
        load_model(tmp_path, json_model_override_args={"architectures": ["OwnForOffload"]}, cpu_offload_gb=2)
