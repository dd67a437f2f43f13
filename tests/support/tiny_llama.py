"""The config of a very small Llama, to be run with ``load_format="dummy"``."""

from __future__ import annotations

import json
from pathlib import Path

SMOLLM2_VOCAB_SIZE = 49_152


def write_tiny_llama(folder: Path, vocab_size: int = 300) -> str:
    """Write ``config.json`` of a very small Llama which ends with its token 2; returns the folder's path."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab_size,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)
