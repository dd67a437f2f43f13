"""From options to a running core: load the model, size the pool, wire the collaborators together.

:class:`EngineConfig` is what was asked for; what is decided here (device, sizes, defaults that depend on the
device) is written down in :class:`Resolved`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...cache.kv_cache import KVCache, plan_num_pages
from ...cache.page_pool import PagePool
from ...cache.radix_cache import RadixCache
from ...cache.slot_pool import SlotPool
from ...cache.slot_tables import SlotTables
from ...errors import ConfigError
from ...grammar.chat_templates import ChatTemplate, read_chat_template
from ...grammar.reasoning import get_reasoning_format
from ...grammar.tool_calls import detect_format
from ...kernels.device import give_back_memory
from ...kernels.linear import is_multiplied_in_c
from ...kernels.native import describe as describe_kernels
from ...kernels.threads import Team, default_threads
from ...models.config import ModelConfig, read_token_ids
from ...models.layers.decoder import CausalLM, Output
from ...models.loader import LoadedModel, load_model
from ...models.rope_fields import rope_fields
from ...models.tokenizer import load_tokenizer
from ...sampling.sampler import Sampler
from ..chat.render import ChatRenderer
from ..chat.turn_ends import find_turn_ends
from ..config import EngineConfig
from ..core import EngineCore
from ..replies.detokenizer import Detokenizer
from ..replies.embedding import build_embedding
from ..replies.outputs import build_output
from ..replies.progress_bar import ProgressBar
from ..requests.constraints import Constraints
from ..requests.encoding import TextEncoder
from ..requests.factory import Limits
from ..schedule.drafts.drafter import MAX_DRAFTS
from ..schedule.policies import make_policy
from ..schedule.scheduler import Scheduler
from ..stats import StatsLine
from ..steps.columns import TokenColumn, checked
from ..steps.runner import ModelRunner
from ..steps.threads import StepThreads
from .backends import Backend, announced, choose_backend, make_backend
from .proposers import make_drafter

logger = logging.getLogger("rootlet.engine")

# (CPU, GPU) defaults. A CPU prefill step of 512 tokens keeps decoding neighbours waiting about a second on
# a small model; a GPU needs thousands of tokens to be busy.
_CHUNK = (512, 8192)
_RUNNING = (256, 1024)
# 64 tokens are what one bulk copy of the attention kernels moves at a time.
_PAGE = (16, 64)
# The host's memory is everybody's; a GPU is usually the engine's alone.
_FRACTION = (0.25, 0.85)


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
    overlap: bool
    eos_token_ids: tuple[int, ...]
    kernels: str
    num_threads: int | None  # None: not computed on a CPU
    attention_backend: str
    embeds: bool  # what requests want: embeddings or scores, not tokens
    has_labels: bool  # the embeddings are scores

    @property
    def pool_tokens(self) -> int:
        """KV room in tokens."""
        return (self.num_pages - 1) * self.page_size

    @property
    def max_decode_rows(self) -> int:
        """Most tokens drawn in a step: one per request, or drafts behind those of fewer requests."""
        return max(self.max_running_requests, 1 + MAX_DRAFTS)

    def as_dict(self) -> dict[str, object]:
        """What was decided, by the names of the options, and the sizes that follow."""
        return {
            "is_embedding": self.embeds,
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
            "disable_overlap_schedule": not self.overlap,
            "eos_token_ids": list(self.eos_token_ids),
        }


@dataclass(frozen=True)
class Parts:
    """A built engine's collaborators."""

    core: EngineCore
    tokenizer: Any
    chat_renderer: ChatRenderer
    limits: Limits
    resolved: Resolved
    constraints: Constraints
    encoder: TextEncoder
    release: Callable[[], None]  # frees device memory


def build(config: EngineConfig, check: Callable[[], None] = lambda: None) -> Parts:
    """Load the model and construct everything. Raises ConfigError, ModelError, WeightsError.

    ``check`` is called every now and then; what it raises ends the build.
    """
    device = _device(config.device)
    if device.type == "cuda":
        if config.num_threads is not None:
            raise ConfigError(
                f"num_threads={config.num_threads} is for engines that compute on a CPU; this one runs on"
                f" {device}. Leave it out, or ask for device='cpu'."
            )
        return _build(config, device, None, check)
    if config.cpu_offload_gb:
        raise ConfigError(
            f"cpu_offload_gb={config.cpu_offload_gb} moves weights from a GPU to host memory;"
            " with device='cpu' they are there already. Leave it out."
        )
    num_threads = config.num_threads or default_threads()
    team = Team(num_threads, torch_threads=num_threads)
    with team.bound():
        return _build(config, device, team, check)


def _build(config: EngineConfig, device: torch.device, team: Team | None, check: Callable[[], None]) -> Parts:
    backend_name = choose_backend(config, device)
    template = None if config.chat_template is None else read_chat_template(config.chat_template)
    loaded = _load(config, device, check)
    check()
    tokenizer = None if config.skip_tokenizer_init else _tokenizer(config, template)
    backend = make_backend(backend_name, config, loaded, device)
    resolved = _resolve(config, device, backend, loaded, tokenizer, team)
    # no sequence outgrows the pool, however long a context the model's files promise
    reach = min(resolved.context_length, resolved.pool_tokens + resolved.page_size)
    loaded.model.set_context_length(reach)
    kv = KVCache(loaded.model.kv_spec(resolved.page_size), resolved.num_pages, device)
    # one row more than runs (row 0 is padding); a row holds the longest sequence
    tables = SlotTables(resolved.max_running_requests + 1, reach, resolved.page_size, device)
    threads = None if team is None else _step_threads(team, loaded, deterministic=config.deterministic)
    runner = _runner(config, resolved, backend, loaded, kv, tables, threads)
    constraints = Constraints(
        config.grammar_backend,
        None if resolved.embeds else tokenizer,
        loaded.config.vocab_size,
        resolved.eos_token_ids,
        config.grammar_compile_budget,
    )
    scheduler = _scheduler(config, resolved, constraints)
    constraints.work_beside(lambda: scheduler.has_work)
    core = EngineCore(
        scheduler,
        runner,
        detokenizer=None if tokenizer is None or resolved.embeds else Detokenizer(tokenizer),
        overlap=resolved.overlap,
        stream_interval=config.stream_interval,
        token_text=None if tokenizer is None else _token_text(tokenizer),
        build_output=build_embedding if resolved.embeds else build_output,
        after_step=None if config.decode_log_interval is None else StatsLine(config.decode_log_interval),
    )

    def release() -> None:
        with contextlib.ExitStack() as ending:  # each of them, in this order, whatever the others raise
            ending.callback(give_back_memory, device)  # nobody but the runner held the model
            ending.callback(kv.close)
            ending.callback(tables.close)
            ending.callback(runner.close)
            ending.callback(constraints.close)

    limits = Limits(
        loaded.config.vocab_size, resolved.context_length, resolved.pool_tokens, loaded.config.hidden_size
    )
    encoder = TextEncoder(tokenizer, limits.max_prompt_tokens, truncates=config.allow_auto_truncate)
    renderer = _chat_renderer(config, tokenizer, template, encoder)
    return Parts(core, tokenizer, renderer, limits, resolved, constraints, encoder, release)


def _chat_renderer(
    config: EngineConfig, tokenizer: Any, template: ChatTemplate | None, encoder: TextEncoder
) -> ChatRenderer:
    tool_format = detect_format(getattr(tokenizer, "chat_template", None), config.tool_call_parser)
    name = config.reasoning_parser
    return ChatRenderer(
        tokenizer, template, tool_format, None if name is None else get_reasoning_format(name), encoder
    )


def _runner(
    config: EngineConfig,
    resolved: Resolved,
    backend: Backend,
    loaded: LoadedModel,
    kv: KVCache,
    tables: SlotTables,
    threads: StepThreads | None,
) -> ModelRunner:
    inputs = backend.make_inputs(tables, kv.spec)
    graphs = None
    if backend.can_record and not config.disable_cuda_graph and not resolved.embeds:  # which never decodes
        from ..steps.decode_graphs import DecodeGraphs  # loads Triton

        limit = config.cuda_graph_max_bs or resolved.max_decode_rows
        graphs = DecodeGraphs(loaded.model, kv, inputs, min(limit, resolved.max_decode_rows))
    sampler = Sampler(loaded.config.vocab_size, resolved.device)
    return ModelRunner(
        loaded.model,
        kv,
        tables,
        sampler,
        inputs,
        graphs,
        columns=_token_columns(loaded.model),
        embeds=resolved.embeds,
        threads=threads,
    )


def _token_columns(model: Any) -> tuple[TokenColumn, ...]:
    """What the model reads per token besides ids and positions; a feature of the engine adds its own here."""
    return checked(getattr(model, "token_columns", ()))


def _step_threads(team: Team, loaded: LoadedModel, *, deterministic: bool) -> StepThreads:
    """Give torch one thread where the team does the work: two sets of threads would fight for the cores."""
    if describe_kernels() == "torch":
        logger.warning(
            "Rootlet's C kernels are not installed: this engine runs on torch alone, about three times"
            " slower. Install a C compiler (gcc or clang) and Python's headers, then Rootlet again, in the"
            " folder of its source: pip install --force-reinstall --no-deps ."
        )
    in_c = deterministic or is_multiplied_in_c(loaded.model.dtype)
    if isinstance(loaded.model, CausalLM) and in_c:
        team.torch_threads = 1
    return StepThreads(team)


def _device(name: str) -> torch.device:
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


def _load(config: EngineConfig, device: torch.device, check: Callable[[], None]) -> LoadedModel:
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
            progress=progress,
        )


def _tokenizer(config: EngineConfig, template: ChatTemplate | None) -> Any:
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


def _resolve(
    config: EngineConfig,
    device: torch.device,
    backend: Backend,
    loaded: LoadedModel,
    tokenizer: Any,
    team: Team | None,
) -> Resolved:
    on_gpu = device.type == "cuda"
    chunk = config.chunked_prefill_size or _CHUNK[on_gpu]
    context = config.context_length or loaded.config.context_length
    if context > loaded.config.context_length:
        raise ConfigError(
            f"context_length={context} exceeds the model's {loaded.config.context_length} tokens."
            " Lower it, or say with json_model_override_args how the model reaches further:"
            f" {_longer(context, loaded.config)}."
        )
    running = config.max_running_requests or _RUNNING[on_gpu]
    page_size = config.page_size or _PAGE[on_gpu]
    fraction = config.mem_fraction_static
    if fraction is None and config.max_total_tokens is None:
        fraction = _FRACTION[on_gpu]
    num_pages = plan_num_pages(
        loaded.model.kv_spec(page_size),
        device,
        max_total_tokens=config.max_total_tokens,
        kv_cache_bytes=config.kv_cache_bytes,
        mem_fraction=fraction,
        # more than every slot full of context is never used
        cap_tokens=running * (context + page_size),
        reserve=_rehearse(config, backend, loaded, device, context, page_size, running, chunk),
    )
    overlap = on_gpu if config.disable_overlap_schedule is None else not config.disable_overlap_schedule
    return Resolved(
        device=device,
        dtype=loaded.model.dtype,
        context_length=context,
        num_pages=num_pages,
        page_size=page_size,
        max_running_requests=running,
        chunked_prefill_size=None if chunk == -1 else chunk,
        overlap=overlap,
        eos_token_ids=_eos_token_ids(loaded, tokenizer),
        kernels="triton" if on_gpu else describe_kernels(),
        num_threads=None if team is None else team.num_threads,
        attention_backend=backend.name,
        embeds=_embeds(config, loaded.model),
        has_labels=_output(loaded.model) is Output.SCORES,
    )


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


def _output(model: Any) -> Output:
    """What the model computes; classes of users' own generate unless they say otherwise."""
    return getattr(model, "output", Output.LOGITS)


def _embeds(config: EngineConfig, model: Any) -> bool:
    embeds = config.is_embedding or _output(model) is not Output.LOGITS
    if embeds and not callable(getattr(model, "compute_embeddings", None)):
        raise ConfigError(
            f"is_embedding=True needs a method compute_embeddings, and {type(model).__name__} has none."
        )
    return embeds


def _rehearse(
    config: EngineConfig,
    backend: Backend,
    loaded: LoadedModel,
    device: torch.device,
    context: int,
    page_size: int,
    running: int,
    chunk: int,
) -> int:
    """Bytes that the largest steps need beside weights and KV pool; known for the GPU's own kernels only."""
    if backend.rehearsal_inputs is None:
        return 0
    from ..steps.rehearsal import rehearse  # loads Triton

    loaded.model.set_context_length(context)
    limit = config.max_prefill_tokens
    with announced(backend):
        return rehearse(
            loaded.model,
            device,
            context,
            page_size,
            backend.rehearsal_inputs,
            num_prefill_tokens=min(context, limit, limit if chunk == -1 else chunk),
            num_decodes=running,
            columns=[column.name for column in _token_columns(loaded.model)],
            in_turn=backend.in_turn,
            embeds=_embeds(config, loaded.model),
        )


def _eos_token_ids(loaded: LoadedModel, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end an output: what the model's files and its tokenizer call eos, and what ends a turn."""
    declared = read_token_ids(loaded.generation_config, "eos_token_id", "generation_config.json")
    ids = {*loaded.config.eos_token_ids, *declared}
    if tokenizer is not None:
        ids |= find_turn_ends(tokenizer)
        if tokenizer.eos_token_id is not None:
            ids.add(tokenizer.eos_token_id)
    return tuple(sorted(token for token in ids if token < loaded.config.vocab_size))  # others are never drawn


def _scheduler(config: EngineConfig, resolved: Resolved, constraints: Constraints) -> Scheduler:
    rows, on_gpu = resolved.max_decode_rows, resolved.device.type == "cuda"
    if on_gpu and not config.disable_cuda_graph:
        rows = min(rows, config.cuda_graph_max_bs or rows)  # a step that is not recorded costs more
    drafter = None if resolved.embeds else make_drafter(config, constraints, rows, on_gpu=on_gpu)
    pool = PagePool(resolved.num_pages)
    return Scheduler(
        pool=pool,
        cache=RadixCache(pool, resolved.page_size, enabled=not config.disable_radix_cache),
        slots=SlotPool(resolved.max_running_requests + 1),
        page_size=resolved.page_size,
        policy=make_policy(config.schedule_policy, config.random_seed or 0),
        chunked_prefill_size=resolved.chunked_prefill_size,
        max_prefill_tokens=config.max_prefill_tokens,
        even_steps=on_gpu,
        drafter=drafter,
    )


def _token_text(tokenizer: Any) -> Callable[[int], str]:
    def text(token_id: int) -> str:
        return tokenizer.decode([token_id])

    return text
