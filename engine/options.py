"""What :class:`rootlet.Engine` takes by name, as type checkers and editors read it.

The options themselves, with defaults and meanings, are :class:`rootlet.engine.config.EngineConfig`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import os
    from typing import TypeAlias

    Place: TypeAlias = str | os.PathLike[str] | None


class EngineOptions(TypedDict, total=False):
    """Every option of an engine but the model's path; what is left out has its default."""

    tokenizer_path: Place
    tokenizer_mode: str
    skip_tokenizer_init: bool
    load_format: str
    trust_remote_code: bool
    dtype: str
    is_embedding: bool
    context_length: int | None
    allow_auto_truncate: bool
    device: str
    num_threads: int | None
    revision: str | None
    download_dir: Place
    json_model_override_args: str
    chat_template: Place
    tool_call_parser: str
    reasoning_parser: str | None
    max_total_tokens: int | None
    kv_cache_bytes: int | None
    mem_fraction_static: float | None
    cpu_offload_gb: float
    enable_memory_saver: bool
    page_size: int | None
    disable_radix_cache: bool
    max_running_requests: int | None
    chunked_prefill_size: int | None
    stream_prefill_size: int | None
    max_prefill_tokens: int
    schedule_policy: str
    disable_overlap_schedule: bool | None
    attention_backend: str
    grammar_backend: str
    grammar_compile_budget: float
    disable_jump_forward: bool
    disable_cuda_graph: bool
    cuda_graph_max_bs: int | None
    disable_shared_prefix_attention: bool
    deterministic: bool
    return_hidden_states: bool
    step_by_hand: bool
    stream_interval: int
    decode_log_interval: int | None
    random_seed: int | None
