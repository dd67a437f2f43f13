"""What the engine decides for options left open: sizes, and defaults that depend on the device."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import ConfigError
from ...kernels.native import describe as describe_kernels
from ...models.config import ModelConfig
from ...models.interface import Model, Output
from ...models.loader import LoadedModel
from ...models.rope_fields import rope_fields
from ..chat.turn_ends import eos_token_ids
from ..config import EngineConfig
from ..output_kind import OutputKind
from ..schedule.drafts.drafter import MAX_DRAFTS

# (CPU, GPU) defaults. A CPU prefill step of 512 tokens keeps decoding neighbours waiting about a second on
# a small model; a GPU needs thousands of tokens to be busy.
_CHUNK = (512, 8192)
# What keeps a step with a prompt in it below about twice a plain one.
_BESIDE_STREAMS = (64, 384)
_RUNNING = (256, 1024)
# 64 tokens are what one bulk copy of the attention kernels moves at a time.
_PAGE = (16, 64)
# The host's memory is everybody's; a GPU is usually the engine's alone.
_FRACTION = (0.25, 0.85)


@dataclass(frozen=True)
class Sizes:
    """What the memory of an engine depends on."""

    context_length: int
    page_size: int
    max_running_requests: int
    chunked_prefill_size: int | None  # None: prompts are computed whole
    stream_prefill_size: int | None  # None: no limit of its own
    mem_fraction: float | None
    num_prefill_tokens: int  # prompt tokens that a step may take

    @classmethod
    def resolve(cls, config: EngineConfig, model: ModelConfig, *, on_gpu: bool) -> Sizes:
        """Raises ConfigError for a context longer than the model's."""
        context = config.context_length or model.context_length
        if context > model.context_length:
            raise ConfigError(
                f"context_length={context} exceeds the model's {model.context_length} tokens."
                " Lower it, or say with json_model_override_args how the model reaches further:"
                f" {_longer(context, model)}."
            )
        chunk = config.chunked_prefill_size or _CHUNK[on_gpu]
        limit = config.max_prefill_tokens
        beside = config.stream_prefill_size or _BESIDE_STREAMS[on_gpu]
        fraction = config.mem_fraction_static
        if fraction is None and config.max_total_tokens is None:
            fraction = _FRACTION[on_gpu]
        return cls(
            context_length=context,
            page_size=config.page_size or _PAGE[on_gpu],
            max_running_requests=config.max_running_requests or _RUNNING[on_gpu],
            chunked_prefill_size=None if chunk == -1 else chunk,
            stream_prefill_size=None if beside == -1 else beside,
            mem_fraction=fraction,
            num_prefill_tokens=min(context, limit, limit if chunk == -1 else chunk),
        )


@dataclass(frozen=True)
class Resolved:
    """What the engine decided for options left open."""

    device: torch.device
    dtype: torch.dtype
    context_length: int
    num_pages: int  # padding page included
    page_size: int
    max_running_requests: int
    chunked_prefill_size: int | None
    stream_prefill_size: int | None
    overlap: bool
    eos_token_ids: tuple[int, ...]
    kernels: str
    num_threads: int | None  # None: not computed on a CPU
    attention_backend: str
    max_recorded_tokens: int  # of a step; 0: none is recorded
    kind: OutputKind

    @classmethod
    def of(
        cls,
        config: EngineConfig,
        sizes: Sizes,
        num_pages: int,
        loaded: LoadedModel,
        tokenizer: Any,
        device: torch.device,
        **decided: Any,
    ) -> Resolved:
        """What follows from ``sizes`` and the pool; ``decided``: the fields that others decide."""
        on_gpu = device.type == "cuda"
        overlap = on_gpu if config.disable_overlap_schedule is None else not config.disable_overlap_schedule
        return cls(
            device=device,
            dtype=loaded.model.dtype,
            context_length=sizes.context_length,
            num_pages=num_pages,
            page_size=sizes.page_size,
            max_running_requests=sizes.max_running_requests,
            chunked_prefill_size=sizes.chunked_prefill_size,
            stream_prefill_size=sizes.stream_prefill_size,
            overlap=overlap,
            eos_token_ids=eos_token_ids(loaded.config, loaded.generation_config, tokenizer),
            kernels="triton" if on_gpu else describe_kernels(),
            **decided,
        )

    @property
    def pool_tokens(self) -> int:
        """KV room in tokens."""
        return (self.num_pages - 1) * self.page_size

    @property
    def max_decode_rows(self) -> int:
        """Most tokens drawn in a step: one per request, or drafts behind those of fewer requests."""
        return max(self.max_running_requests, 1 + MAX_DRAFTS)

    @property
    def reach(self) -> int:
        """The longest sequence: none outgrows the pool, however long a context the model's files promise."""
        return min(self.context_length, self.pool_tokens + self.page_size)

    def as_dict(self) -> dict[str, object]:
        """What was decided, by the names of the options, and the sizes that follow."""
        return {
            "is_embedding": not self.kind.is_text,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "kernels": self.kernels,
            "num_threads": self.num_threads,
            "attention_backend": self.attention_backend,
            "page_size": self.page_size,
            "context_length": self.context_length,
            "max_total_num_tokens": self.pool_tokens,
            "max_req_input_len": min(self.context_length - 1, self.pool_tokens),
            "max_running_requests": self.max_running_requests,
            "chunked_prefill_size": self.chunked_prefill_size or -1,
            "stream_prefill_size": self.stream_prefill_size or -1,
            "disable_overlap_schedule": not self.overlap,
            "eos_token_ids": list(self.eos_token_ids),
        }


def resolve_device(name: str) -> torch.device:
    """The device of that name. Raises ConfigError if there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r} was asked for, but torch sees no CUDA GPU. Use device='cpu'.")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {name!r}.")
    return device


def _longer(wanted: int, model: ModelConfig) -> str:
    """Overrides that allow a context of ``wanted`` tokens."""
    original = rope_fields(model.raw).get("original_max_position_embeddings") or model.context_length
    scaling = {
        "rope_type": "yarn",
        "factor": math.ceil(100 * wanted / original) / 100,
        "original_max_position_embeddings": original,
    }
    longer = json.dumps({"rope_scaling": scaling})
    return (
        f"{longer} stretches it, {json.dumps({'max_position_embeddings': wanted})} if it was trained on that"
    )


def output_kind(config: EngineConfig, model: Model) -> OutputKind:
    """What requests come to. Raises ConfigError if the model cannot embed."""
    if not config.is_embedding and model.output is Output.LOGITS:
        return OutputKind.TEXT
    model.check_embeddings()
    return OutputKind.SCORES if model.output is Output.SCORES else OutputKind.EMBEDDING
