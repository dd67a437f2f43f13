"""What a workload takes at least: every weight, key and value read once where needed, every FLOP done once.

    prefill  = max(FLOPs / F, weight bytes / B)       all prompts as one step
    decode   = sum over steps of max((weight bytes + KV bytes) / B, FLOPs / F)
    floor    = prefill + decode

B is the read bandwidth and F the bf16 GEMM rate, both measured in the same run. FLOPs are 2 per weight and
token (the output layer only for tokens that are sampled) and 4 * heads * head_dim per layer and pair of query
and key. All requests are taken to decode side by side from the first step to their last; a prefix that many
share is computed once and, in decode, read once per step and group. Start-up has no floor.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from h100_workloads import Requests


@dataclass(frozen=True)
class Ceilings:
    """What the card does at best: bytes read per second, bf16 FLOPs per second."""

    read_bytes_per_s: float
    flops_per_s: float

    @classmethod
    def measure(cls, device: torch.device) -> Ceilings:
        """Time sums over 8 GiB and two seconds of 8192^3 products (small ones without a GPU)."""
        return cls(_read_bandwidth(device), _gemm_rate(device))


@dataclass(frozen=True)
class Costs:
    """What a token of a model costs; weights and cache in 16 bits."""

    layer_weights: int
    head_weights: int
    kv_bytes: int  # per token
    pair_flops: int  # per pair of query and key, all layers

    @classmethod
    def of(cls, config: dict) -> Costs:
        """Costs of a dense model from its ``config.json``."""
        hidden, layers = config["hidden_size"], config["num_hidden_layers"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        head_dim = config.get("head_dim") or hidden // heads
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
        mlp = 3 * hidden * config["intermediate_size"]
        return cls(
            layer_weights=layers * (attention + mlp),
            head_weights=hidden * config["vocab_size"],
            kv_bytes=layers * 2 * kv_heads * head_dim * 2,
            pair_flops=layers * 4 * heads * head_dim,
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a decode step reads."""
        return 2 * (self.layer_weights + self.head_weights)

    def prefill_seconds(self, requests: Requests, ceilings: Ceilings) -> float:
        """Seconds until every request has its first token."""
        lengths = np.array(requests.input_lengths, dtype=np.float64)
        own = lengths - requests.num_shared
        shared = float(requests.num_shared)
        tokens = own.sum() + requests.num_groups * shared
        pairs = (own * shared + own * (own + 1) / 2).sum()
        pairs += requests.num_groups * shared * (shared + 1) / 2
        flops = 2 * (self.layer_weights * tokens + self.head_weights * len(lengths)) + self.pair_flops * pairs
        return max(flops / ceilings.flops_per_s, self.weight_bytes / ceilings.read_bytes_per_s)

    def decode_seconds(self, requests: Requests, ceilings: Ceilings) -> float:
        """Seconds from everybody's first token to the last."""
        lengths = np.array(requests.input_lengths, dtype=np.float64)
        outputs = np.array(requests.output_lengths)
        seconds = 0.0
        for step in range(1, int(outputs.max())):
            contexts = lengths[outputs > step] + step
            read = (contexts - requests.num_shared).sum() + requests.num_groups * requests.num_shared
            flops = 2 * (self.layer_weights + self.head_weights) * len(contexts)
            flops += self.pair_flops * contexts.sum()
            reading = (self.weight_bytes + self.kv_bytes * read) / ceilings.read_bytes_per_s
            seconds += max(reading, flops / ceilings.flops_per_s)
        return seconds

    def seconds(self, requests: Requests, ceilings: Ceilings) -> float:
        """Seconds of the whole workload."""
        return self.prefill_seconds(requests, ceilings) + self.decode_seconds(requests, ceilings)


def _read_bandwidth(device: torch.device, groups: int = 10, sums: int = 10) -> float:
    """The best of several groups: a ceiling is what the card can do."""
    data = torch.ones(2**31 if device.type == "cuda" else 2**24, dtype=torch.float32, device=device)
    data.sum()
    best = float("inf")
    for _ in range(groups):
        start = _now(device)
        for _ in range(sums):
            data.sum()
        best = min(best, (_now(device) - start) / sums)
    return data.nbytes / best


def _gemm_rate(device: torch.device, size: int = 8192, seconds: float = 2.0) -> float:
    """The mean over two seconds, on random numbers: this is how the card runs when its power limit counts."""
    if device.type != "cuda":
        size, seconds = 256, 0.1
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    out = torch.empty_like(a)
    for _ in range(10):
        torch.mm(a, b, out=out)
    count, start = 0, _now(device)
    while (elapsed := _now(device) - start) < seconds:
        for _ in range(20):
            torch.mm(a, b, out=out)
        count += 20
    return 2 * size**3 * count / elapsed


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
