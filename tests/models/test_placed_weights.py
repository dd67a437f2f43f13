"""All weights in one piece of memory that somebody else brings, and where they are found again."""

from __future__ import annotations

import pytest
import torch

from rootlet.models.build import build_model
from rootlet.models.registry import resolve

from .driver import Driver
from .hf import build_hf, build_ours, config_of, one_thread, state_of  # noqa: F401

IDS = [*range(5, 40)]


def logits_of(model):
    return Driver(model, page_size=4).run("a", IDS, chunk=13)


@pytest.mark.parametrize(("family", "fields"), [
    ("Llama", {}), ("Qwen2", {"tie_word_embeddings": True}), ("Mistral", {}),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_lie_side_by_side_and_are_loaded_in_place(family, fields, dtype):
    hf = build_hf(family, **fields)
    config, asked = config_of(hf), []
    model = build_model(resolve(config.architectures), config, dtype, "cpu")

    def allocate(num_bytes):
        asked.append(torch.full((num_bytes,), 0xEE, dtype=torch.uint8))
        return asked[-1]

    model.place_weights(allocate)
    assert model.weight_tensors() == []
    model.load_weights(state_of(hf).items())
    [memory] = asked
    tensors = model.weight_tensors()
    begin, end = memory.data_ptr(), memory.data_ptr() + memory.nbytes
    places = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in tensors)
    assert places[0][0] == begin
    assert all(
        a + n <= b and (b - begin) % 512 == 0 for (a, n), (b, _) in zip(places, [*places[1:], (end, 0)])
    )
    assert sum(n for _, n in places) == model.weight_nbytes
    expected = logits_of(model)
    if dtype is torch.float32:
        torch.testing.assert_close(expected, logits_of(build_ours(hf)))
    memory.fill_(0xEE)
    assert not torch.equal(logits_of(model), expected)
    model.load_weights(state_of(hf).items())
    assert torch.equal(logits_of(model), expected)
    assert sorted((tensor.data_ptr(), tensor.nbytes) for tensor in model.weight_tensors()) == places


def test_what_is_loaded_cannot_move():
    model = build_ours(build_hf("Llama"))
    with pytest.raises(AssertionError, match="moved once"):
        model.place_weights(lambda num_bytes: torch.empty(num_bytes, dtype=torch.uint8))
