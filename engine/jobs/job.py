"""``run_jobs``: checks first, then the pipeline.

    lock output -> read its records -> read the input once (digests only) -> compare: done, missing, changed
    -> build the engine -> mend the output, write the settings -> read the input again, answer what is missing

Everything that can be wrong with the files or the settings is found before the engine is built, and no file
is changed before that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import JobError
from ...sampling.params import SamplingParams
from ...signatures import suggest_names
from ..config import EngineConfig
from .lines import parse_line
from .options import check_flags, check_options, check_stack
from .output_file import OutputFile
from .paths import check_input_path
from .pipeline import Pipeline
from .plan import make_plan
from .progress import Progress
from .read_ahead import WINDOW_LINES, Order, in_order
from .request import JobDefaults
from .summary import JobSummary

if TYPE_CHECKING:
    from ..engine import Engine

logger = logging.getLogger("rootlet.jobs")

_MIN_IN_FLIGHT = 64
_IN_FLIGHT_PER_RUNNING = 2  # enough waiting that a finished request is replaced at once


@suggest_names()
def run_jobs(
    input: str | Path,
    output: str | Path,
    *,
    engine: Engine | None = None,
    model: str | Path | None = None,
    sampling_params: Mapping[str, Any] | SamplingParams | None = None,
    engine_options: Mapping[str, Any] | None = None,
    order: Order = "prefix",
    progress: bool = True,
    max_in_flight: int | None = None,
    window: int = WINDOW_LINES,
    retry_errors: bool = False,
    on_changed: Literal["error", "redo"] = "error",
    force: bool = False,
    overwrite: bool = False,
) -> JobSummary:
    """Answer every line of a JSONL file; run it again after any interruption to finish what is missing.

    >>> summary = rootlet.run_jobs("prompts.jsonl", "answers.jsonl", model="SmolLM2-135M-Instruct.Q4_1.gguf")
    >>> print(summary)

    A line is ``{"id"?, "prompt" | "messages", "sampling_params"?}`` or an OpenAI batch line; its record has
    the same form (:mod:`rootlet.engine.jobs.simple_lines` and ``openai_lines`` describe both). Records are
    appended as they finish, so their order is not that of the input: use ``id``, ``custom_id`` or ``index``.
    A line that cannot be answered gets a record with ``error`` set, and the job goes on.
    Every record carries a checksum, ``crc``; one that is damaged later is found and answered anew.

    Resuming: a record counts as done if its line is still in the input with the same content. A line is known
    by its id, or by its position if it has none; ids must not repeat. Memory: about 150 bytes per line while
    comparing, 9 bytes per line afterwards (150 MB and 9 MB per million); lines are held a window at a time.

    Args:
        input: JSONL file, plain or gzip. A line may have 64 MiB, 2,000,000 values and 100 levels of nesting.
        output: JSONL file, created or resumed. ``<output>.job.json`` beside it holds the job's settings.
        engine: run on this engine, which stays open; or
        model: build an engine from this model and ``engine_options``, and close it at the end.
        sampling_params: defaults for every line; a line's own values win. A seed here makes the job
            repeatable: each line draws from it and from its id. Without one a seed is drawn once per job.
        order: "prefix" submits lines that begin alike side by side, so that prefixes are computed once;
            "input" keeps the input's order.
        progress: show a bar (a terminal, a notebook), else log a line now and then.
        max_in_flight: engine requests submitted and unfinished at a time; default: twice what runs at once.
        window: lines read ahead for ``order="prefix"``.
        retry_errors: do the lines again whose record is an error.
        on_changed: what to do about records whose line was changed or removed: refuse, or drop and redo.
        force: resume although model, engine options or sampling parameters differ from the earlier run's.
        overwrite: drop an existing output and start over.

    Raises:
        JobError: the files or settings do not allow the job to start, to resume or (a full disk, a moved
            output) to go on. A job that is refused leaves no file behind and changes none.
        EngineClosedError, EngineThreadError: your engine is closed, or a done callback of it asks.
        KeyboardInterrupt: after writing what had finished.
    """
    check_options(order, window, on_changed, max_in_flight)
    check_flags(progress=progress, retry_errors=retry_errors, force=force, overwrite=overwrite)
    check_stack()
    config = _engine_config(engine, model, engine_options)
    sampling = _given(sampling_params)
    input_path = check_input_path(input)
    with OutputFile(output) as file:
        plan = make_plan(
            file,
            input_path,
            config,
            sampling,
            redo_changed=on_changed == "redo",
            retry_errors=retry_errors,
            force=force,
            overwrite=overwrite,
        )
        state = plan.state
        counts = Progress(state.total, state.total - state.num_missing, state.causes)
        if not state.num_missing:
            plan.begin()
            return _summary(counts, file)
        defaults = JobDefaults({k: v for k, v in sampling.items() if k != "seed"}, plan.settings.seed)
        lines = (parse_line(line, defaults) for line in state.missing_lines(input_path))
        with _opened(engine, model, engine_options) as running:
            plan.begin()
            with counts.display(progress):
                pipeline = Pipeline(running, file, counts, max_in_flight or _default_in_flight(running))
                _run(pipeline, in_order(lines, order, window), counts, file)
        return _summary(counts, file)


def _engine_config(
    engine: Engine | None, model: str | Path | None, engine_options: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """All engine options by name: those asked for, or those of the caller's engine."""
    if (engine is None) == (model is None):
        raise JobError("Give either engine (one of yours) or model (to build one), not both or neither.")
    if engine_options is not None and not isinstance(engine_options, Mapping):
        raise JobError(f"engine_options must be a dict of options, got {type(engine_options).__name__}.")
    if engine is None:
        config = EngineConfig.from_options(model, dict(engine_options or {}))
    elif engine_options:
        raise JobError("engine_options apply to an engine that the job builds; yours is built already.")
    elif not isinstance(getattr(engine, "config", None), EngineConfig):
        raise JobError(
            f"engine must be a rootlet.Engine, got {type(engine).__name__}; a model's path is model=."
        )
    else:
        config = engine.config
    if config.step_by_hand:
        raise JobError("A job needs an engine that runs by itself: leave out step_by_hand.")
    if engine is not None:
        engine.stats()  # raises if it is closed, and on its own thread, where a job would wait for ever
    return config.as_dict()


def _given(sampling_params: Mapping[str, Any] | SamplingParams | None) -> dict[str, Any]:
    """The sampling parameters the caller set; of an object, those that are not the defaults."""
    if isinstance(sampling_params, SamplingParams):
        fields = dataclasses.fields(SamplingParams)
        default = SamplingParams()
        values = {f.name: getattr(sampling_params, f.name) for f in fields}
        return {name: value for name, value in values.items() if value != getattr(default, name)}
    given = {} if sampling_params is None else sampling_params
    checked = SamplingParams.from_dict(given)  # refuse nonsense now rather than once per line
    given = {name: value for name, value in given.items() if name != "seed"}
    return given if checked.seed is None else given | {"seed": checked.seed}


@contextlib.contextmanager
def _opened(
    engine: Engine | None, model: str | Path | None, engine_options: Mapping[str, Any] | None
) -> Iterator[Engine]:
    """The caller's engine, or one built here and closed afterwards."""
    if engine is None:
        from ..engine import Engine

        assert model is not None  # one of the two was given
        with Engine(model, **(engine_options or {})) as own:
            yield own
    else:
        yield engine


def _default_in_flight(engine: Engine) -> int:
    running: Any = engine.get_server_info().get("max_running_requests") or 0
    return max(_MIN_IN_FLIGHT, _IN_FLIGHT_PER_RUNNING * running)


def _run(pipeline: Pipeline, lines: Iterator[Any], counts: Progress, file: OutputFile) -> None:
    start = file.nbytes
    try:
        pipeline.run(lines)
        file.sync()
    except BaseException as error:
        # Ctrl-C may have come between writing a record and counting it, so the file is asked
        done = counts.resumed + file.count_records(start)
        logger.warning(
            "Stopped by %s: %d of %d records are in %s. Run the same job again to finish the other %d.",
            type(error).__name__,
            done,
            counts.total,
            file.path,
            counts.total - done,
        )
        raise


def _summary(counts: Progress, file: OutputFile) -> JobSummary:
    return JobSummary(
        output=str(file.path),
        total=counts.total,
        resumed=counts.resumed,
        completed=counts.completed,
        errors=counts.causes.total,
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        cached_tokens=counts.cached_tokens,
        seconds=counts.seconds,
        causes=counts.causes,
    )
