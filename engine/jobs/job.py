"""``run_jobs``: checks first, then the pipeline.

    lock output -> cut off a torn tail -> read its records -> read the input once (digests only)
    -> compare: done, missing, changed -> build the engine -> read the input again, answer what is missing

Everything that can be wrong with the files or the settings is found before the engine is built.
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
from ...sampling.seeds import random_seed
from ...version import __version__
from ..config import EngineConfig
from .input_file import check_input_path
from .lines import parse_line
from .output_file import OutputFile
from .pipeline import Pipeline
from .progress import Progress
from .read_ahead import WINDOW_LINES, Order, check_order, in_order
from .request import JobDefaults
from .resume import Comparison, compare, scan_input, scan_records
from .sidecar import JobSettings, Sidecar, differences
from .summary import JobSummary

if TYPE_CHECKING:
    from ..engine import Engine

logger = logging.getLogger("rootlet.jobs")

_MIN_IN_FLIGHT = 64
_IN_FLIGHT_PER_RUNNING = 2  # enough waiting that a finished request is replaced at once


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

    Resuming: a record counts as done if its line is still in the input with the same content. A line is known
    by its id, or by its position if it has none; ids must not repeat. Memory: about 150 bytes per line while
    comparing, 9 bytes per line afterwards (150 MB and 9 MB per million); lines are held a window at a time.

    Args:
        input: JSONL file, plain or gzip.
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
        JobError: the files or settings do not allow the job to start or to resume.
        KeyboardInterrupt: after writing what had finished.
    """
    check_order(order, window)
    if on_changed not in ("error", "redo"):
        raise JobError(f"on_changed must be 'error' or 'redo', got {on_changed!r}.")
    if max_in_flight is not None and (not isinstance(max_in_flight, int) or max_in_flight < 1):
        raise JobError(f"max_in_flight must be at least 1, got {max_in_flight!r}.")
    config = _engine_config(engine, model, engine_options)
    sampling = _given(sampling_params)
    input_path = check_input_path(input)
    with OutputFile(output) as file:
        _check_apart(input_path, file.path)
        seed = _settle_settings(file, config, sampling, input_path, force=force, overwrite=overwrite)
        state = _compare(file, input_path, redo_changed=on_changed == "redo", retry_errors=retry_errors)
        defaults = JobDefaults({k: v for k, v in sampling.items() if k != "seed"}, seed)
        lines = (parse_line(line, defaults) for line in state.missing_lines(input_path))
        resumed = state.total - state.num_missing
        counts = Progress(state.total, resumed, state.num_errors)
        if state.num_missing:
            with _opened(engine, model, engine_options) as running, counts.display(progress):
                pipeline = Pipeline(running, file, counts, max_in_flight or _default_in_flight(running))
                _run(pipeline, in_order(lines, order, window), counts, file)
        return _summary(counts, file)


def _engine_config(
    engine: Engine | None, model: str | Path | None, engine_options: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """All engine options by name: those asked for, or those of the caller's engine."""
    if (engine is None) == (model is None):
        raise JobError("Give either engine (one of yours) or model (to build one), not both or neither.")
    if engine is None:
        config = EngineConfig.from_options(model, dict(engine_options or {}))
    elif engine_options:
        raise JobError("engine_options apply to an engine that the job builds; yours is built already.")
    else:
        config = engine.config
    if config.step_by_hand:
        raise JobError("A job needs an engine that runs by itself: leave out step_by_hand.")
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


def _check_apart(input_path: Path, output_path: Path) -> None:
    if input_path.samefile(output_path):
        raise JobError(f"Input and output are the same file: {str(output_path)!r}.")


def _settle_settings(
    file: OutputFile,
    config: Mapping[str, Any],
    sampling: Mapping[str, Any],
    input_path: Path,
    *,
    force: bool,
    overwrite: bool,
) -> int:
    """Check the job's settings against those the output was begun with, record them, return the seed."""
    sidecar = Sidecar(file.path)
    if overwrite:
        file.clear()
    old = sidecar.read() if file.nbytes else None
    if file.nbytes and old is None and not force:
        raise JobError(
            f"The output {str(file.path)!r} exists, but not {sidecar.path.name!r}, which says how it was "
            "made. Choose another output, resume anyway with force, or start over with overwrite."
        )
    drawn = old.seed if old else random_seed()
    settings = JobSettings.of(config, sampling, sampling.get("seed", drawn))
    changes = differences(old, settings) if old else []
    if changes and not force:
        raise JobError(
            f"The output {str(file.path)!r} was begun with other settings: {'; '.join(changes)}. Use the "
            "earlier ones, choose another output, resume anyway with force, or start over with overwrite."
        )
    if changes:
        logger.warning("Resuming with other settings: %s", "; ".join(changes))
    if settings != old:
        sidecar.write(settings, input_path, __version__)
    return settings.seed


def _compare(file: OutputFile, input_path: Path, *, redo_changed: bool, retry_errors: bool) -> Comparison:
    """Repair the output, compare it with the input, and drop the records that are to be done again."""
    torn = file.repair()
    if torn:
        logger.warning("Cut off a torn record of %d bytes at the end of %s", torn, file.path)
    records = scan_records(file.read_records(), file.path)
    state = compare(
        scan_input(input_path),
        records,
        input_path=input_path,
        output_path=file.path,
        redo_changed=redo_changed,
        retry_errors=retry_errors,
    )
    if state.keep is not None:
        keep = state.keep
        file.rewrite(lambda number: bool(keep[number]))
        logger.info("Dropped %d records to be done again", len(keep) - int(keep.sum()))
    return state


@contextlib.contextmanager
def _opened(
    engine: Engine | None, model: str | Path | None, engine_options: Mapping[str, Any] | None
) -> Iterator[Engine]:
    """The caller's engine, or one built here and closed afterwards."""
    if engine is not None:
        yield engine
        return
    from ..engine import Engine

    with Engine(model, **(engine_options or {})) as own:
        yield own


def _default_in_flight(engine: Engine) -> int:
    running = engine.get_server_info().get("max_running_requests") or 0
    return max(_MIN_IN_FLIGHT, _IN_FLIGHT_PER_RUNNING * running)


def _run(pipeline: Pipeline, lines: Iterator[Any], counts: Progress, file: OutputFile) -> None:
    start = file.nbytes
    try:
        pipeline.run(lines)
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
        errors=counts.errors,
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        cached_tokens=counts.cached_tokens,
        seconds=counts.seconds,
    )
