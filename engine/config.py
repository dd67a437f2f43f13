"""Engine options: what the user asked for (:class:`EngineConfig`), checked once and then frozen.

``help(rootlet.engine.config.EngineConfig)`` explains every option. Names and defaults are those of the
documented server arguments wherever they make sense inside a process. Options of that page that belong to
a server are refused with the reason.
"""

from __future__ import annotations

import dataclasses
import math
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, UnknownOptionError, unknown_option
from ..grammar.budget import DEFAULT_SECONDS
from ..grammar.reasoning import get_reasoning_format
from ..grammar.tool_calls import get_format
from .schedule.policies import POLICY_NAMES

_DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
_MAX_THREADS = 512  # kernels/threads.py, which would load torch
_LOAD_FORMATS = ("auto", "safetensors", "pt", "gguf", "dummy")

# Options of the peers that have no meaning here, and why.
_FOREIGN = dict.fromkeys(("host", "port", "api_key", "served_model_name", "file_storage_pth"), "server") | (
    dict.fromkeys(("log_level", "log_level_http", "log_requests"), "logging")
)
_FOREIGN_REASONS = {
    "server": "it belongs to an HTTP server, and the engine runs inside your process without one",
    "logging": "logging is yours to configure: logging.getLogger('rootlet').setLevel(...)",
}


def _option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Every option of :class:`rootlet.Engine`. Raises ConfigError when a value is impossible.

    Options:
    """

    model_path: str = field(metadata={"help": "folder, .gguf file or hub id of the model"})
    tokenizer_path: str | None = _option(None, "folder or hub id of the tokenizer; default: the model's own")
    tokenizer_mode: str = _option("auto", "'slow' forces the Python tokenizer", ("auto", "slow"))
    skip_tokenizer_init: bool = _option(
        False, "run on token ids only: no tokenizer is loaded, no text returned"
    )
    load_format: str = _option("auto", "weight files to read; 'dummy' needs only config.json", _LOAD_FORMATS)
    trust_remote_code: bool = _option(False, "allow tokenizer code from the model repository to run")
    dtype: str = _option("auto", "data type of weights and activations; 'auto' follows the model", _DTYPES)
    is_embedding: bool = _option(
        False, "compute embeddings (encode) instead of text; models without a language head always do"
    )
    context_length: int | None = _option(
        None, "tokens of a request, prompt and output, at least 1; default: the model's"
    )
    allow_auto_truncate: bool = _option(
        False, "cut prompts that are too long to their first tokens, with a warning, instead of refusing them"
    )
    device: str = _option("auto", "'cpu', 'cuda' or 'cuda:1'; 'auto' takes a GPU when there is one")
    num_threads: int | None = _option(
        None,
        "threads that compute on a CPU, ours and torch's, without a change to torch.get_num_threads() of your"
        " own (default: as many as that says, at most one per core that this process may use)",
    )
    revision: str | None = _option(None, "branch, tag or commit of the model's hub repository")
    download_dir: str | None = _option(None, "where hub files are kept; default: the hub cache")
    json_model_override_args: str = _option("{}", "JSON object merged into the model's config.json")
    chat_template: str | None = _option(
        None,
        "instead of the tokenizer's: a built-in name (such as chatml), a .jinja or .json file, or Jinja text",
    )
    tool_call_parser: str = _option(
        "auto",
        "how the model writes tool calls: llama3, mistral, qwen25 or a registered format; 'auto' goes by the"
        " chat template",
    )
    reasoning_parser: str | None = _option(
        None,
        "tell reasoning from answers in chats: deepseek-r1 (every reply reasons first) or qwen3 (where the"
        " reply or the prompt says so)",
    )

    max_total_tokens: int | None = _option(
        None, "size of the KV pool in tokens, at least 1; default: by mem_fraction_static"
    )
    kv_cache_bytes: int | None = _option(None, "size of the KV pool in bytes, instead of max_total_tokens")
    mem_fraction_static: float | None = _option(
        None,
        "KV pool as a fraction, above 0 and below 1, of the memory free at construction (default 0.85 on a"
        " GPU, 0.25 on a CPU)",
    )
    cpu_offload_gb: float = _option(
        0,
        "GiB, at least 0, of the layers' weights that stay in host memory and are copied to the GPU in every"
        " step: same results, slower, more room",
    )
    enable_memory_saver: bool = _option(
        False,
        "on a GPU: keep weights and KV cache where release_memory() can give their memory back; on a CPU it"
        " can without this",
    )
    page_size: int | None = _option(
        None,
        "tokens per KV page, at least 1 (default 16 CPU, 64 GPU); prefix reuse is token-exact whatever it is",
    )
    disable_radix_cache: bool = _option(False, "compute every prompt from its first token")

    max_running_requests: int | None = _option(
        None, "requests that run at once, at least 1 (default 256 CPU, 1024 GPU)"
    )
    chunked_prefill_size: int | None = _option(
        None, "prompt tokens computed per step, in pieces (default 512 CPU, 8192 GPU); -1: whole prompts"
    )
    stream_prefill_size: int | None = _option(
        None,
        "prompt tokens computed per step while somebody streams tokens and few prompts wait, so that streams"
        " stay smooth (default 64 CPU, 384 GPU); -1: as many as ever",
    )
    max_prefill_tokens: int = _option(16384, "prompt tokens computed per step in all, at least 1")
    schedule_policy: str = _option("lpm", "order in which waiting requests start", POLICY_NAMES)
    disable_overlap_schedule: bool | None = _option(
        None, "commit each step before launching the next (default: on a CPU yes, on a GPU no)"
    )
    attention_backend: str = _option(
        "auto",
        "attention kernels; 'auto' takes the fastest for the device ('triton' on a GPU); 'flashinfer' needs"
        " that package and runs without CUDA graphs and shared-prefix attention",
        ("auto", "torch", "triton", "flashinfer"),
    )
    grammar_backend: str = _option(
        "xgrammar",
        "library that constrains outputs (json_schema, regex, ebnf, ...)",
        ("xgrammar", "llguidance"),
    )
    grammar_compile_budget: float = _option(
        DEFAULT_SECONDS,
        "seconds of CPU time that compiling one constraint may take, its steps and bytes in proportion;"
        " what needs more is refused",
    )
    disable_jump_forward: bool = _option(
        False, "compute what a constraint forces token by token, not in one step; same tokens"
    )
    disable_cuda_graph: bool = _option(False, "launch every kernel of a decode step from the host")
    cuda_graph_max_bs: int | None = _option(
        None,
        "largest decode batch that is recorded as a CUDA graph (default: max_running_requests, at least 33)",
    )
    disable_shared_prefix_attention: bool = _option(
        False, "read a prefix that running requests share once per request, not once per step"
    )
    deterministic: bool = _option(
        False,
        "tokens and log-probabilities of a request are the same, to the last bit, whatever runs beside it,"
        " is cached, or how its prompt is cut; slower",
    )
    return_hidden_states: bool = _option(
        False, "return hidden states with every result; costs memory and time"
    )
    step_by_hand: bool = _option(False, "no thread of its own: the engine moves only when you call step()")
    stream_interval: int = _option(1, "tokens between two chunks of a stream, at least 1")
    decode_log_interval: int | None = _option(
        None, "steps between two lines of statistics in the log 'rootlet.engine' (INFO); default: none"
    )
    random_seed: int | None = _option(
        None, "seed in [0, 2**63) that makes unseeded sampling repeatable; default: drawn afresh"
    )

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            _check_type(option, getattr(self, option.name))
            choices = option.metadata.get("choices")
            if choices and getattr(self, option.name) not in choices:
                raise ConfigError(
                    f"{option.name} must be one of {', '.join(choices)}, got {getattr(self, option.name)!r}."
                )
        for name in ("context_length", "max_total_tokens", "kv_cache_bytes", "max_running_requests"):
            self._require_positive(name)
        for name in (
            "page_size",
            "max_prefill_tokens",
            "stream_interval",
            "cuda_graph_max_bs",
            "decode_log_interval",
        ):
            self._require_positive(name)
        if self.num_threads is not None and not 1 <= self.num_threads <= _MAX_THREADS:
            raise ConfigError(
                f"num_threads must be between 1 and {_MAX_THREADS}, got {self.num_threads}. More than there"
                " are cores only slows things down; leave it out for one per core that this process may use."
            )
        if self.chunked_prefill_size is not None and self.chunked_prefill_size != -1:
            self._require_positive("chunked_prefill_size", "or -1 to compute prompts whole")
        if self.stream_prefill_size is not None and self.stream_prefill_size != -1:
            self._require_positive("stream_prefill_size", "or -1 for no limit of its own")
        if self.mem_fraction_static is not None and not 0 < self.mem_fraction_static < 1:
            raise ConfigError(f"mem_fraction_static must be in (0, 1), got {self.mem_fraction_static}.")
        if not 0 <= self.cpu_offload_gb < math.inf:
            raise ConfigError(
                "cpu_offload_gb must be a number of GiB, at least 0 (which offloads nothing),"
                f" got {self.cpu_offload_gb}."
            )
        if self.enable_memory_saver and self.cpu_offload_gb:
            raise ConfigError(
                f"enable_memory_saver=True does not go with cpu_offload_gb={self.cpu_offload_gb}, by which"
                " weights pass through buffers. Leave one of the two out."
            )
        if not 0 < self.grammar_compile_budget < math.inf:
            raise ConfigError(
                "grammar_compile_budget must be a number of seconds above 0, got"
                f" {self.grammar_compile_budget}."
            )
        sizes = [n for n in ("max_total_tokens", "kv_cache_bytes") if getattr(self, n) is not None]
        if len(sizes) == 2:
            raise ConfigError(f"Give {sizes[0]} or {sizes[1]}, not both: each sets the size of the KV pool.")
        if self.skip_tokenizer_init and self.chat_template is not None:
            raise ConfigError("chat_template needs a tokenizer: leave it or skip_tokenizer_init out.")
        if self.tool_call_parser != "auto":
            get_format(self.tool_call_parser)
        if self.reasoning_parser is not None:
            get_reasoning_format(self.reasoning_parser)
        if self.attention_backend == "flashinfer" and self.cuda_graph_max_bs is not None:
            raise ConfigError(
                f"cuda_graph_max_bs={self.cuda_graph_max_bs} does not go with attention_backend='flashinfer',"
                " which plans every step on the host: nothing can be recorded. Leave one of the two out."
            )
        if self.random_seed is not None and not 0 <= self.random_seed < 2**63:
            raise ConfigError(f"random_seed must be in [0, 2**63), got {self.random_seed}.")

    def _require_positive(self, name: str, otherwise: str = "") -> None:
        value = getattr(self, name)
        if value is not None and value < 1:
            raise ConfigError(
                f"{name} must be at least 1{' ' + otherwise if otherwise else ''}, got {value}."
            )

    @classmethod
    def from_options(cls, model_path: object, options: Mapping[str, Any]) -> EngineConfig:
        """Build from ``Engine(model_path, **options)``. Unknown names raise UnknownOptionError."""
        known = [option.name for option in dataclasses.fields(cls)]
        for name in options:
            if name in _FOREIGN:
                reason = _FOREIGN_REASONS[_FOREIGN[name]]
                raise UnknownOptionError(f"Option {name!r} does not apply: {reason}. Leave it out.")
            if name not in known:
                raise unknown_option("engine option", name, known)
        if not isinstance(model_path, str) and not hasattr(model_path, "__fspath__"):
            raise ConfigError(
                f"model_path must be a path or hub id, got {type(model_path).__name__}: {model_path!r}."
            )
        options = {name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in options.items()}
        return cls(model_path=str(model_path), **options)

    def as_dict(self) -> dict[str, object]:
        """All options by name."""
        return dataclasses.asdict(self)


def _explained(option: dataclasses.Field[Any]) -> str:
    """What a docstring says of an option: its type, default, meaning and the values it may have."""
    default = "" if option.default is dataclasses.MISSING else f" = {option.default!r}"
    choices = option.metadata.get("choices")
    text = option.metadata["help"] + (f"; one of {', '.join(choices)}" if choices else "")
    indent = " " * 12
    meaning = textwrap.fill(text, 106, initial_indent=indent, subsequent_indent=indent)
    return f"        {option.name}: {option.type}{default}\n{meaning}\n"


# one source for pydoc and the command line: the options' own metadata
EngineConfig.__doc__ = (
    (EngineConfig.__doc__ or "").rstrip() + "\n" + "".join(map(_explained, dataclasses.fields(EngineConfig)))
)


def _check_type(option: dataclasses.Field[Any], value: object) -> None:
    """Check ``value`` against the field's annotation, one of ``T`` or ``T | None`` with a builtin T."""
    names = str(option.type).split(" | ")
    if value is None and "None" in names:
        return
    allowed: tuple[type, ...]
    allowed = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}[names[0]]
    if not isinstance(value, allowed) or (isinstance(value, bool) and names[0] != "bool"):
        raise ConfigError(
            f"{option.name} must be {' or '.join(names)}, got {type(value).__name__}: {value!r}."
        )
