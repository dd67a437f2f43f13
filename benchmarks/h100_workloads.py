"""The model shapes, workloads and peers' figures of ``h100.py`` and ``h100_serving.py``.

Prompts are token ids drawn uniformly from ``[100, vocab - 1000)``, greedy, end of sequence ignored. The
lengths of a workload never change; its ids depend on ``seed``, so that no repeat finds the prefixes of an
earlier one. Lengths, orders and seeds are those the peers were timed with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_COMMON = {
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, dict] = {
    "L8B": _COMMON  # Llama-3.1-8B
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "Q05B": _COMMON  # Qwen2.5-0.5B
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151936,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "max_window_layers": 24,
    },
    "TINY": _COMMON  # for --quick: shows that the script works, measures nothing
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 2000,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
}
WORKLOADS = {
    "W1": "1 request, 128 in, 512 out",
    "W2": "1000 requests at once, 64-1024 in, 64-512 out",
    "W3": "32 groups x 32 requests, 2048 shared + 64 own in, 64 out, cache empty",
    "W4": "1 request, 32768 in, 1 out",
    "W5": "256 requests at once, 512 in, 256 out",
    "W6": "start of a fresh process",
}
ENGINE_OPTIONS = {"load_format": "dummy", "skip_tokenizer_init": True, "dtype": "bfloat16"}
REPEATS = {"W1": 3, "W2": 2, "W3": 2, "W4": 3, "W5": 3, "W6": 2}


@dataclass(frozen=True)
class Target:
    """What a figure is held against: the best peer, what must be reached and what is aimed at."""

    best_peer: float
    must: float | None = None
    aim: float | None = None


# (model, workload, metric). The peers' start was timed without their import of 9 to 10 s, added here.
TARGETS: dict[tuple[str, str, str], Target] = {
    ("L8B", "W1", "decode"): Target(6.41, 5.6, 5.2),
    ("L8B", "W2", "total"): Target(34.9, 33.2, 29),
    ("L8B", "W2", "output_throughput"): Target(8365),
    ("L8B", "W3", "total"): Target(10.84, 7.7, 6),
    ("L8B", "W4", "ttft"): Target(1.203, 1.26, 1.15),
    ("L8B", "W5", "total"): Target(7.23, 6.9, 6.3),
    ("L8B", "W5", "step"): Target(17.04),
    ("L8B", "W6", "start_cold"): Target(72.9, 15, 6),
    ("L8B", "W6", "start_second"): Target(46.9, 15, 6),
    ("Q05B", "W1", "decode"): Target(1.61, 1.1, 0.6),
    ("Q05B", "W2", "total"): Target(12.0, 10.4, 8),
    ("Q05B", "W2", "output_throughput"): Target(24320),
    ("Q05B", "W5", "total"): Target(1.76),
    ("Q05B", "W5", "step"): Target(5.33),
    ("Q05B", "W6", "start_cold"): Target(70.3),
    ("Q05B", "W6", "start_second"): Target(29.1),
}

# streams under load: vLLM's alone, by the metrics of h100_serving.py
_LATENCIES = [f"{name}_p{percent}" for name in ("ttft", "itl", "tpot") for percent in (50, 99)]
_STREAM_METRICS = ["total", "output_throughput", *_LATENCIES]
for _load, _figures in {
    "stream 4:150": (35.4, 1170, 43, 84, 7.0, 35.6, 7.6, 9.1),
    "stream 16:500": (36.4, 4036, 57, 115, 8.6, 38.6, 11.5, 13.9),
    "stream inf:1000": (43.7, 6684, 18133, 39256, 11.7, 40, 18.1, 20.8),
}.items():
    TARGETS |= {("L8B", _load, metric): Target(value) for metric, value in zip(_STREAM_METRICS, _figures)}


@dataclass(frozen=True)
class Requests:
    """Requests that are sent at once: prompts, output lengths and how many first tokens each group shares."""

    prompts: list[list[int]]
    output_lengths: list[int]
    num_groups: int = 0  # the groups are of equal size
    num_shared: int = 0

    @property
    def input_lengths(self) -> list[int]:
        """Prompt lengths in tokens."""
        return [len(prompt) for prompt in self.prompts]

    def first(self, count: int) -> Requests:
        """The first few, which share nothing that is known of."""
        return Requests(self.prompts[:count], self.output_lengths[:count])


class Prompts:
    """Makes the requests of one model. ``scale`` divides numbers and lengths, for a try."""

    def __init__(self, vocab_size: int, scale: int = 1) -> None:
        self._vocab = vocab_size
        self._scale = scale

    def single(self, seed: int, length: int = 128, output_length: int = 512) -> Requests:
        """W1 and, with 32768 tokens and another stream of ids, W4."""
        stream = 4000 if length > 128 else 1000
        ids = self._ids(np.random.default_rng(stream + seed), self._cut(length))
        return Requests([ids], [self._cut(output_length)])

    def mixed(self, seed: int) -> Requests:
        """W2: all input lengths are drawn first, then all output lengths, both ranges inclusive."""
        lengths = np.random.default_rng(0)
        inputs = lengths.integers(64, 1025, size=1000)[: self._cut(1000)]
        outputs = lengths.integers(64, 513, size=1000)[: self._cut(1000)]
        ids = np.random.default_rng(2000 + seed)
        prompts = [self._ids(ids, self._cut(n)) for n in inputs]
        return Requests(prompts, [self._cut(int(n)) for n in outputs])

    def shared_prefix(self, seed: int) -> Requests:
        """W3: the requests of 32 groups, in an order that never changes."""
        ids = np.random.default_rng(3000 + seed)
        groups, size, prefix = self._cut(32), self._cut(32), self._cut(2048)
        prompts = []
        for _ in range(groups):
            shared = self._ids(ids, prefix)
            prompts += [shared + self._ids(ids, self._cut(64)) for _ in range(size)]
        order = np.random.default_rng(3).permutation(len(prompts))
        return Requests([prompts[i] for i in order], [self._cut(64)] * len(prompts), groups, prefix)

    def batch(self, seed: int, output_length: int = 256) -> Requests:
        """W5."""
        ids = np.random.default_rng(5000 + seed)
        prompts = [self._ids(ids, self._cut(512)) for _ in range(self._cut(256))]
        return Requests(prompts, [self._cut(output_length)] * len(prompts))

    def of(self, workload: str, seed: int) -> Requests:
        """The requests of W1 to W5."""
        if workload == "W4":
            return self.single(seed, 32768, 1)
        make = {"W1": self.single, "W2": self.mixed, "W3": self.shared_prefix, "W5": self.batch}
        return make[workload](seed)

    def warm_up(self) -> Iterator[Requests]:
        """Small requests of every kind, so that kernels are compiled and decode steps recorded.

        Alone and a few, many at once that end one after the other (every batch size in between), prefixes
        shared by groups of several sizes, and a prompt of several chunks.
        """
        ids = np.random.default_rng(9000)
        for count, length, longest in (
            (1, 128, 16),
            (3, 32, 4),
            (256, 32, 16),
            (1000, 16, 72),
            (1, 33000, 2),
        ):
            prompts = [self._ids(ids, self._cut(length)) for _ in range(self._cut(count))]
            yield Requests(prompts, [max(1, longest * (i + 1) // len(prompts)) for i in range(len(prompts))])
        for groups, size in ((1, 8), (2, 32), (8, 32), (32, 32)):
            prefixes = [self._ids(ids, self._cut(1024)) for _ in range(groups)]
            prompts = [prefix + self._ids(ids, 8) for prefix in prefixes for _ in range(self._cut(size))]
            yield Requests(prompts, [8] * len(prompts), groups)

    def _cut(self, number: int) -> int:
        return max(1, int(number) // self._scale)

    def _ids(self, rng: np.random.Generator, length: int) -> list[int]:
        return rng.integers(100, self._vocab - 1000, size=int(length)).tolist()


def write_config(model: str, root: Path) -> Path:
    """Write the ``config.json`` of a model into a folder of its own and return the folder."""
    folder = root / model
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MODELS[model], indent=1))
    return folder


def names(allowed: tuple[str, ...]) -> Callable[[str], list[str]]:
    """A type of arguments: some of ``allowed``, comma-separated."""

    def split(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(allowed)}")
        return chosen

    return split
