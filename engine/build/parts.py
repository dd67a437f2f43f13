"""From options to a running core: load the model, size the pool, wire the collaborators together.

:class:`EngineConfig` is what was asked for; what is decided here (device, sizes, defaults that depend on the
device) is written down in :class:`Resolved`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...cache.kv_cache import KVCache
from ...cache.page_pool import PagePool
from ...cache.radix_cache import RadixCache
from ...cache.slot_pool import SlotPool
from ...cache.slot_tables import SlotTables, WriteRuns, write_in_place
from ...errors import ConfigError
from ...grammar.chat_templates import read_chat_template
from ...kernels.device import give_back_memory
from ...kernels.matrices.packing import is_multiplied_in_c
from ...kernels.native import describe as describe_kernels
from ...kernels.threads import Team, default_threads
from ...models.config import ModelConfig
from ...models.loader import LoadedModel
from ...sampling.sampler import Sampler
from ..chat.render import ChatRenderer
from ..config import EngineConfig
from ..core import EngineCore
from ..memory import EngineMemory
from ..replies.detokenizer import Detokenizer
from ..replies.embedding import build_embedding
from ..replies.outputs import build_output
from ..requests.constraints import Constraints
from ..requests.encoding import TextEncoder
from ..requests.prompts import Limits
from ..schedule.policies import make_policy
from ..schedule.scheduler import Scheduler
from ..stats import StatsLine
from ..steps.columns import checked
from ..steps.runner import ModelRunner
from ..steps.threads import StepThreads
from .backends import Backend, choose_backend, make_backend
from .kernels import KernelsAhead
from .loading import load_weights, make_tokenizer
from .memory import measure_steps, plan_pool
from .proposers import make_drafter
from .recording import make_graphs, max_recorded_tokens
from .released import make_memory, make_places
from .resolved import Resolved, Sizes, output_kind, resolve_device

logger = logging.getLogger("rootlet.engine")


@dataclass(frozen=True)
class Parts:
    """A built engine's collaborators."""

    core: EngineCore
    tokenizer: Any
    chat_renderer: ChatRenderer
    limits: Limits
    resolved: Resolved
    model_config: ModelConfig
    constraints: Constraints
    encoder: TextEncoder
    memory: EngineMemory
    release: Callable[[], None]  # frees device memory


def build(config: EngineConfig, check: Callable[[], None] = lambda: None) -> Parts:
    """Load the model and construct everything. Raises ConfigError, ModelError, WeightsError.

    ``check`` is called every now and then; what it raises ends the build.
    """
    device = resolve_device(config.device)
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
    places = make_places(config, device)
    with KernelsAhead(config, backend_name, device) as kernels:
        loaded = load_weights(config, device, check, places.allocate_weights, kernels.begin)
        check()
        tokenizer = None if config.skip_tokenizer_init else make_tokenizer(config, template)
        backend = make_backend(backend_name, config, loaded.model, device)
        resolved = _resolve(config, device, backend, loaded, tokenizer, team, kernels)
    check()
    loaded.model.set_context_length(resolved.reach)
    allocate = places.allocate_kv_cache
    kv = KVCache(loaded.model.kv_spec(resolved.page_size), resolved.num_pages, device, allocate)
    # one row more than runs (row 0 is padding); a row holds the longest sequence
    num_slots = resolved.max_running_requests + 1
    tables = SlotTables(
        num_slots, resolved.reach, resolved.page_size, device, _table_writer(device), allocate
    )
    threads = None if team is None else _step_threads(team, loaded, deterministic=config.deterministic)
    runner = _runner(config, resolved, backend, loaded, kv, tables, threads)
    memory = make_memory(places, loaded.model, kv, tables, runner)
    constraints = Constraints(
        config.grammar_backend,
        tokenizer if resolved.kind.is_text else None,
        loaded.config.vocab_size,
        resolved.eos_token_ids,
        config.grammar_compile_budget,
    )
    scheduler = _scheduler(config, resolved, constraints)
    constraints.work_beside(lambda: scheduler.has_work)
    core = EngineCore(
        scheduler,
        runner,
        detokenizer=Detokenizer(tokenizer) if tokenizer is not None and resolved.kind.is_text else None,
        overlap=resolved.overlap,
        stream_interval=config.stream_interval,
        token_text=None if tokenizer is None else _token_text(tokenizer),
        build_output=build_output if resolved.kind.is_text else build_embedding,
        after_step=None if config.decode_log_interval is None else StatsLine(config.decode_log_interval),
        get_ready=runner.record_ahead,
        refusal=memory.refusal,
    )

    def release() -> None:
        with contextlib.ExitStack() as ending:  # each of them, in this order, whatever the others raise
            ending.callback(give_back_memory, device)  # nobody but these held the model
            ending.callback(memory.close)
            ending.callback(kv.close)
            ending.callback(tables.close)
            ending.callback(runner.close)
            ending.callback(constraints.close)

    limits = Limits(
        loaded.config.vocab_size, resolved.context_length, resolved.pool_tokens, loaded.config.hidden_size
    )
    encoder = TextEncoder(tokenizer, limits.max_prompt_tokens, truncates=config.allow_auto_truncate)
    renderer = ChatRenderer.of(
        tokenizer,
        template,
        encoder,
        tool_call_parser=config.tool_call_parser,
        reasoning_parser=config.reasoning_parser,
    )
    return Parts(
        core,
        tokenizer,
        renderer,
        limits,
        resolved,
        loaded.config,
        constraints,
        encoder,
        memory,
        release,
    )


def _resolve(
    config: EngineConfig,
    device: torch.device,
    backend: Backend,
    loaded: LoadedModel,
    tokenizer: Any,
    team: Team | None,
    kernels: KernelsAhead,
) -> Resolved:
    sizes = Sizes.resolve(config, loaded.config, on_gpu=device.type == "cuda")
    kind = output_kind(config, loaded.model)
    recorded = max_recorded_tokens(config, sizes, backend, loaded.model) if kind.is_text else 0
    reserve = measure_steps(
        sizes,
        backend,
        loaded.model,
        device,
        recorded,
        vocab_size=loaded.config.vocab_size,
        embeds=not kind.is_text,
        is_compiled=kernels.wait,
    )
    num_pages = plan_pool(config, sizes, loaded.model.kv_spec(sizes.page_size), device, reserve)
    return Resolved.of(
        config,
        sizes,
        num_pages,
        loaded,
        tokenizer,
        device,
        num_threads=None if team is None else team.num_threads,
        attention_backend=backend.name,
        max_recorded_tokens=recorded,
        kind=kind,
    )


def _table_writer(device: torch.device) -> WriteRuns:
    """What writes to slot tables there."""
    if device.type != "cuda":
        return write_in_place
    from ...kernels.gpu.slot_writes import write_runs  # loads Triton

    return write_runs


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
    columns = checked(loaded.model.token_columns)  # a feature of the engine adds its own here
    sampler = Sampler(loaded.config.vocab_size, resolved.device)
    return ModelRunner(
        loaded.model,
        kv,
        tables,
        sampler,
        inputs,
        make_graphs(config, resolved, loaded.model, kv, inputs),
        columns=columns,
        embeds=not resolved.kind.is_text,
        threads=threads,
    )


def _step_threads(team: Team, loaded: LoadedModel, *, deterministic: bool) -> StepThreads:
    """Give torch one thread where the team does the work: two sets of threads would fight for the cores."""
    if describe_kernels() == "torch":
        logger.warning(
            "Rootlet's C kernels are not installed: this engine runs on torch alone, about three times"
            " slower. Install a C compiler (gcc or clang) and Python's headers, then Rootlet again, in the"
            " folder of its source: pip install --force-reinstall --no-deps ."
        )
    in_c = deterministic or is_multiplied_in_c(loaded.model.dtype)
    if loaded.model.multiplies_in_kernels and in_c:
        team.torch_threads = 1
    return StepThreads(team)


def _scheduler(config: EngineConfig, resolved: Resolved, constraints: Constraints) -> Scheduler:
    rows, on_gpu = resolved.max_decode_rows, resolved.device.type == "cuda"
    if on_gpu and not config.disable_cuda_graph:
        rows = min(rows, config.cuda_graph_max_bs or rows)  # a step that is not recorded costs more
    drafts = resolved.kind.is_text
    drafter = make_drafter(config, constraints, rows, on_gpu=on_gpu) if drafts else None
    pool = PagePool(resolved.num_pages)
    return Scheduler(
        pool=pool,
        cache=RadixCache(pool, resolved.page_size, enabled=not config.disable_radix_cache),
        slots=SlotPool(resolved.max_running_requests + 1),
        page_size=resolved.page_size,
        policy=make_policy(config.schedule_policy, config.random_seed or 0),
        chunked_prefill_size=resolved.chunked_prefill_size,
        stream_prefill_size=resolved.stream_prefill_size,
        max_prefill_tokens=config.max_prefill_tokens,
        even_steps=on_gpu,
        drafter=drafter,
    )


def _token_text(tokenizer: Any) -> Callable[[int], str]:
    def text(token_id: int) -> str:
        return tokenizer.decode([token_id])

    return text
