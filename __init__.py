"""Rootlet: an LLM inference engine you import.

    >>> import rootlet
    >>> with rootlet.Engine("SmolLM2-135M-Instruct.Q4_1.gguf") as engine:
    ...     out = engine.generate("The capital of France is", {"temperature": 0, "max_new_tokens": 8})
    ...     print(out["text"])

Importing this package is cheap: torch and transformers load when an :class:`Engine` is built.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from . import errors
from .errors import RootletError
from .version import __version__

if TYPE_CHECKING:
    from .alignment.align import align, token_logprobs
    from .alignment.aligned import Alignment
    from .engine.chat.outputs import ChatOutput
    from .engine.documented import async_stream_and_merge, stream_and_merge
    from .engine.engine import Engine
    from .engine.jobs import run_jobs
    from .engine.replies.embedding import EmbeddingOutput
    from .engine.replies.outputs import RequestOutput
    from .engine.weights.options import WeightUpdate
    from .grammar.tool_calls import Function, FunctionCallParser, Tool, ToolCallItem
    from .models.registry import register_model
    from .sampling.custom import CustomLogitProcessor
    from .sampling.params import SamplingParams
    from .transfer.buckets import weights_buckets
    from .transfer.group import WeightsGroup
    from .transfer.ipc import ipc_handle

__all__ = [
    "Alignment",
    "ChatOutput",
    "CustomLogitProcessor",
    "EmbeddingOutput",
    "Engine",
    "Function",
    "FunctionCallParser",
    "RequestOutput",
    "RootletError",
    "SamplingParams",
    "Tool",
    "ToolCallItem",
    "WeightUpdate",
    "WeightsGroup",
    "__version__",
    "align",
    "async_stream_and_merge",
    "errors",
    "ipc_handle",
    "register_model",
    "run_jobs",
    "stream_and_merge",
    "token_logprobs",
    "weights_buckets",
]

# name -> module that defines it; loaded on first access (PEP 562) so that `import rootlet` stays light
_LAZY = {
    "Alignment": ".alignment.aligned",
    "ChatOutput": ".engine.chat.outputs",
    "CustomLogitProcessor": ".sampling.custom",
    "EmbeddingOutput": ".engine.replies.embedding",
    "Engine": ".engine.engine",
    "Function": ".grammar.tool_calls",
    "FunctionCallParser": ".grammar.tool_calls",
    "RequestOutput": ".engine.replies.outputs",
    "SamplingParams": ".sampling.params",
    "Tool": ".grammar.tool_calls",
    "ToolCallItem": ".grammar.tool_calls",
    "WeightUpdate": ".engine.weights.options",
    "align": ".alignment.align",
    "WeightsGroup": ".transfer.group",
    "async_stream_and_merge": ".engine.documented",
    "stream_and_merge": ".engine.documented",
    "ipc_handle": ".transfer.ipc",
    "weights_buckets": ".transfer.buckets",
    "register_model": ".models.registry",
    "run_jobs": ".engine.jobs",
    "token_logprobs": ".alignment.align",
}


if not TYPE_CHECKING:  # checkers have the imports above, and shall miss any other name

    def __getattr__(name: str) -> object:
        if name in _LAZY:
            value = getattr(importlib.import_module(_LAZY[name], __name__), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
