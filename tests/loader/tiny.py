"""Tiny random models of transformers, GGUF files written from them by llama.cpp's own writer, and checks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

import gguf
import numpy as np
import torch

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def random_model(kind: str, **changes):
    """A random fp32 transformers model: 2 layers, hidden 64, 4 heads over 2 K/V heads."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[kind]
    fields = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "bos_token_id": 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = model_class(config_class(**(fields | changes))).eval()
        model.config.architectures = [model_class.__name__]
        for name, parameter in model.named_parameters():
            if (
                parameter.dim() == 1
            ):  # transformers starts norms at one and biases at zero: mix-ups would not show
                torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    return model


def interleave_halves(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of q and k: within a head 0, D/2, 1, D/2 + 1, ..."""
    head_dim = weight.shape[0] // num_heads
    order = [
        head * head_dim + half * head_dim // 2 + j
        for head in range(num_heads)
        for j in range(head_dim // 2)
        for half in range(2)
    ]
    return weight[order]


def gguf_name(name: str) -> str:
    """The GGUF name of a Hugging Face tensor."""
    stem, _, ending = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{ending}"
    return f"{NAMES[stem]}.{ending}"


def metadata_writer(path: Path, model, kind: str) -> gguf.GGUFWriter:
    """A writer with the metadata of ``model`` and no tensors yet."""
    config = model.config
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    return writer


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(
    path: Path, model, kind: str, quantization=gguf.GGMLQuantizationType.F32, extra: Callable | None = None
) -> Path:
    """Write ``model`` as GGUF the way llama.cpp's converter does: matrices quantised, vectors F32.

    ``extra(writer)`` may add metadata and tensors.
    """
    writer = metadata_writer(path, model, kind)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = model.config.num_attention_heads if "q_proj" in name else model.config.num_key_value_heads
            values = interleave_halves(values, heads)
        if values.ndim == 1:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
        else:
            data = gguf.quants.quantize(np.ascontiguousarray(values), quantization)
            writer.add_tensor(gguf_name(name), data, raw_dtype=quantization)
    if extra is not None:
        extra(writer)
    finish(writer)
    return path


def assert_streams(named: Iterable[tuple[str, torch.Tensor]]) -> int:
    """Walk a stream of weights; every tensor must be free once the next one is asked for."""
    count, last = 0, None
    for name, tensor in named:
        assert last is None or last() is None, f"the tensor before {name} is still alive"
        last = weakref.ref(tensor)
        count += 1
        del tensor
    return count


def assert_weights(model, expected: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Compare every weight of a loaded model with a state dict, bit by bit."""
    assert model.weight_shapes
    for name in model.weight_shapes:
        assert torch.equal(model.get_weight(name), expected[name].to(dtype)), name
