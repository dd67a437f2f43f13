"""The model and its tokenizer, as the options ask for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...grammar.chat_templates import ChatTemplate
from ...models.loader import BeforeWeights, LoadedModel, load_model
from ...models.tokenizer import load_tokenizer
from ..config import EngineConfig
from ..replies.progress_bar import ProgressBar


def load_weights(
    config: EngineConfig,
    device: torch.device,
    check: Callable[[], None],
    allocate: Callable[[int], torch.Tensor] | None,
    before_weights: BeforeWeights,
) -> LoadedModel:
    """The model with its weights, and a bar meanwhile. What ``check`` raises ends the load.

    ``allocate(bytes)``: where the weights are to be; None: anywhere.
    """
    # delay: a model that loads at once shows nothing; disable=None: nor does anything without a terminal
    with ProgressBar(
        desc="Loading weights", unit="B", unit_scale=True, delay=2, leave=False, disable=None
    ) as bar:

        def progress(done: int, total: int) -> None:
            check()
            bar.total = total
            bar.update(done - bar.n)

        return load_model(
            config.model_path,
            dtype=config.dtype,
            device=device,
            load_format=config.load_format,
            revision=config.revision,
            download_dir=config.download_dir,
            json_model_override_args=config.json_model_override_args,
            trust_remote_code=config.trust_remote_code,
            batch_invariant=config.deterministic,
            cpu_offload_gb=config.cpu_offload_gb,
            allocate=allocate,
            progress=progress,
            before_weights=before_weights,
        )


def make_tokenizer(config: EngineConfig, template: ChatTemplate | None) -> Any:
    """The tokenizer, with the chat template in force."""
    path = config.tokenizer_path or config.model_path
    tokenizer = load_tokenizer(
        path,
        mode=config.tokenizer_mode,
        revision=config.revision if path == config.model_path else None,  # a revision of that repository
        trust_remote_code=config.trust_remote_code,
        download_dir=config.download_dir,
    )
    if template is not None:
        tokenizer.chat_template = template.jinja
    return tokenizer
