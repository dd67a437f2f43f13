"""A per-token input is one part and one registration: deltas that requests choose, recorded or not."""

from __future__ import annotations

import contextlib

import pytest
import torch

import rootlet
from rootlet.engine.steps.columns import RequestColumn
from rootlet.errors import ModelError
from rootlet.models import registry
from rootlet.models.layers.attention import Attention
from rootlet.models.layers.layers import PreNormLayer
from rootlet.models.layers.mlp import GatedMLP
from rootlet.models.llama import LlamaForCausalLM

from ..models.hf import build_hf

WIDTHS = {"q_proj": 32, "k_proj": 16, "v_proj": 16}
DELTAS = torch.linspace(-1, 1, 3 * sum(WIDTHS.values())).view(3, -1).sin()  # [number, q | k | v]
DELTAS[0] = 0


class Shifted(Attention):
    """Projects q, k and v and adds one of a few vectors, by the number at the end of a rid."""

    def project(self, x, inp):
        return super().project(x, inp) + DELTAS[inp.columns["delta"]]


class ShiftedForCausalLM(LlamaForCausalLM):
    token_columns = (RequestColumn("delta", lambda request: int(request.rid[-1])),)

    def layer(self, index, make):
        attention = Shifted(make.at(make.names.attention), self.rotary, make.heads)
        mlp = GatedMLP(make.at(make.names.mlp))
        return PreNormLayer(make.names, attention, mlp, make.rms_norm(), make.rms_norm())


PROMPTS = [[5, 6, 7], [9] * 20, list(range(40, 51)), [3]]
NUMBERS = [1, 0, 2, 1]
OUTPUT = 10


@pytest.fixture(scope="module")
def hf():
    return build_hf(
        "Llama", max_position_embeddings=128, num_hidden_layers=2, hidden_size=32, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip


@pytest.fixture
def folder(hf, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    rootlet.register_model("ShiftedForCausalLM", ShiftedForCausalLM)
    hf.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "ShiftedForCausalLM"))
    return str(tmp_path)


@torch.inference_mode()
def expected(hf, prompt, number):
    """Transformers' greedy tokens with that vector added to every layer's q, k and v."""
    tokens = list(prompt)
    deltas = dict(zip(WIDTHS, DELTAS[number].split(list(WIDTHS.values()))))
    with contextlib.ExitStack() as hooks:
        for name, module in hf.named_modules():
            delta = deltas.get(name.rpartition(".")[2])
            if delta is not None:
                hook = module.register_forward_hook(lambda _, __, y, delta=delta: y + delta)
                hooks.callback(hook.remove)
        for _ in range(OUTPUT):
            logits = hf(input_ids=torch.tensor([tokens]), use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
    return tuple(tokens[len(prompt) :])


def generate(folder, count=4, **options):
    # what keys and values depend on is not in these requests' namespace, so they must not share any
    options = {"disable_radix_cache": True, "max_total_tokens": 512} | options
    params = {"temperature": 0, "max_new_tokens": OUTPUT, "ignore_eos": True}
    rids = [f"request {i} with {number}" for i, number in enumerate(NUMBERS[:count])]
    with rootlet.Engine(folder, device="cpu", dtype="float32", skip_tokenizer_init=True, **options) as engine:
        outputs = engine.generate(input_ids=PROMPTS[:count], sampling_params=params, rid=rids)
        return [output.token_ids for output in outputs]


@pytest.mark.parametrize(
    "options",
    [{}, {"chunked_prefill_size": 4, "page_size": 4}, {"max_total_tokens": 44, "page_size": 4}],
    ids=["whole", "chunks", "preemption"],
)
@pytest.mark.parametrize("overlap", [False, True])
def test_each_request_gets_its_own_number(hf, folder, options, overlap):
    wanted = [expected(hf, prompt, number) for prompt, number in zip(PROMPTS, NUMBERS)]
    assert wanted[0] != expected(hf, PROMPTS[0], 0)
    assert generate(folder, disable_overlap_schedule=not overlap, **options) == wanted


def test_recorded_steps_carry_the_column(hf, folder, monkeypatch):
    """Steps with prompts are padded to the least of all numbers of tokens, the others to four rows."""
    pytest.importorskip("supported_triton")
    from replayed_graphs import use_gpu_steps

    graphs = use_gpu_steps(monkeypatch)
    got = generate(folder, 3, disable_overlap_schedule=False, cuda_graph_max_bs=4)
    assert got == [expected(hf, prompt, number) for prompt, number in zip(PROMPTS[:3], NUMBERS)]
    [made] = graphs
    assert [recorded for _, _, recorded in made.replays] == [True] * OUTPUT
    [mixed], [decodes] = made.mixed.values(), made.decodes.values()
    lengths = [len(prompt) for prompt in PROMPTS[:3]]
    deltas = [number for number, length in zip(NUMBERS, lengths) for _ in range(length)]
    assert mixed.room.own[2].tolist() == deltas + [0] * (64 - len(deltas))  # slot, position, delta, ...
    assert decodes.room.own[2].tolist() == [*NUMBERS[:3], 0]


def test_the_engines_own_names_are_taken(folder, monkeypatch):
    for name in ("slot", "length"):
        monkeypatch.setattr(ShiftedForCausalLM, "token_columns", (RequestColumn(name, lambda _: 0),))
        with pytest.raises(ModelError, match=f"'{name}' more than once"):
            generate(folder)
