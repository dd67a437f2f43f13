"""What transformers says: the reference that the engine is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import torch
from transformers import LlamaConfig, LlamaForCausalLM

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
}


def load_gguf_in_transformers(path: Path) -> LlamaForCausalLM:
    """Build transformers' model from a llama GGUF file, by the format's description alone."""
    reader = gguf.GGUFReader(path)

    def value(key: str):
        return reader.fields[f"llama.{key}"].contents()

    heads, kv_heads = value("attention.head_count"), value("attention.head_count_kv")
    config = LlamaConfig(
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=value("vocab_size"),
        max_position_embeddings=value("context_length"),
        rope_theta=value("rope.freq_base"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        torch_dtype="float32",
    )
    weights = {}
    for tensor in reader.tensors:
        data = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        *layer, name, _ = tensor.name.split(".")
        if name in ("attn_q", "attn_k"):  # llama.cpp interleaves the two halves that are rotated together
            n = heads if name == "attn_q" else kv_heads
            data = data.view(n, data.shape[0] // n // 2, 2, -1).transpose(1, 2).reshape(data.shape)
        prefix = f"model.layers.{layer[1]}." if layer else "model."
        weights[f"{prefix}{_NAMES[name]}.weight"] = data
    model, found = LlamaForCausalLM.from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True
    )
    assert not any(found.values()), found
    return model


@torch.inference_mode()
def greedy(
    model: LlamaForCausalLM, prompt: Sequence[int], max_new_tokens: int, guess: Sequence[int] = ()
) -> list[int]:
    """Greedy tokens of one prompt alone, never stopping early.

    A ``guess`` only saves time: if one pass over the prompt and the guess has each guessed token as the
    likeliest after what stands before it, then these are the greedy tokens.
    """
    ids = torch.tensor([list(prompt)])
    if len(guess) == max_new_tokens:
        rows = model(torch.tensor([[*prompt, *guess[:-1]]]), logits_to_keep=max_new_tokens).logits[0]
        if rows.argmax(-1).tolist() == list(guess):
            return list(guess)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@torch.inference_mode()
def log_softmax(model: LlamaForCausalLM, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities ``[len(ids), vocab]`` after each token of ``ids``."""
    return torch.log_softmax(model(torch.tensor([list(ids)])).logits[0].float(), -1)
