"""A per-token input is one class and one registration: vectors that requests choose, recorded or not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import rootlet
from rootlet.engine.steps.columns import RequestColumn
from rootlet.errors import ModelError
from rootlet.models import registry
from rootlet.models.forward import TokenEmbeds
from rootlet.models.llama import LlamaForCausalLM

from ..models.hf import build_hf

DELTAS = torch.linspace(-1, 1, 3 * 32).view(3, 32).sin()  # [number, H]
DELTAS[0] = 0


class Shifted(LlamaForCausalLM):
    """Projects tokens to their embedding plus one of a few vectors, by the number at the end of a rid."""

    token_columns = (RequestColumn("delta", lambda request: int(request.rid[-1])),)

    def forward(self, inp, kv):
        values = self.embedding.forward(inp.input_ids) + DELTAS[inp.columns["delta"]]
        places = torch.arange(len(values), dtype=torch.int64, device=values.device)
        return super().forward(replace(inp, embeds=TokenEmbeds(places, values)), kv)


PROMPTS = [[5, 6, 7], [9] * 20, list(range(40, 51)), [3]]
NUMBERS = [1, 0, 2, 1]
OUTPUT = 10


@pytest.fixture(scope="module")
def hf():
    return build_hf(
        "Llama", max_position_embeddings=128, num_hidden_layers=1, hidden_size=32, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip


@pytest.fixture
def folder(hf, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    rootlet.register_model("ShiftedForCausalLM", Shifted)
    hf.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "ShiftedForCausalLM"))
    return str(tmp_path)


@torch.inference_mode()
def expected(hf, prompt, number):
    """Transformers' greedy tokens with that vector added to every embedding."""
    tokens = list(prompt)
    for _ in range(OUTPUT):
        embeds = hf.get_input_embeddings()(torch.tensor([tokens])) + DELTAS[number]
        tokens.append(int(hf(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax()))
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
    """Steps with prompts are built like those on a GPU, the others recorded and padded to four rows."""
    pytest.importorskip("supported_triton")
    from replayed_graphs import use_gpu_steps

    graphs = use_gpu_steps(monkeypatch)
    got = generate(folder, 3, disable_overlap_schedule=False, cuda_graph_max_bs=4)
    assert got == [expected(hf, prompt, number) for prompt, number in zip(PROMPTS[:3], NUMBERS)]
    [made] = graphs
    assert len(made.replays) == OUTPUT - 1
    [recorded] = made._graphs.values()
    assert recorded.columns.shape == (4, 4)  # slot, position, delta, length
    assert recorded.columns[2].tolist() == [*NUMBERS[:3], 0]


def test_the_engines_own_names_are_taken(folder, monkeypatch):
    for name in ("slot", "length"):
        monkeypatch.setattr(Shifted, "token_columns", (RequestColumn(name, lambda _: 0),))
        with pytest.raises(ModelError, match=f"'{name}' more than once"):
            generate(folder)
