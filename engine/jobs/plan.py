"""What a run of a job has to do, found by reading alone, and the moment from which files are changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import JobError
from ...sampling.seeds import random_seed
from ...version import __version__
from .output_file import OutputFile
from .paths import check_apart
from .resume import Comparison, RecordTable, compare, scan_input, scan_records
from .sidecar import JobSettings, Sidecar, differences, model_files

logger = logging.getLogger("rootlet.jobs")

_MAX_NAMED = 10  # damaged lines a warning names


@dataclass(frozen=True)
class Plan:
    """The settings of a job, what is done, what is missing; :meth:`begin` makes the files ready for more."""

    file: OutputFile
    sidecar: Sidecar
    input_path: Path
    settings: JobSettings
    state: Comparison
    overwrite: bool
    seal_all: bool  # the records of an earlier version have no checksums
    write_settings: bool

    def begin(self) -> None:
        """Drop what is to be done again and write down the settings; raises JobError if the disk fails."""
        file, keep = self.file, self.state.keep
        file.scratch.clear()
        if self.overwrite:
            file.clear()
        elif torn := file.repair():
            logger.warning("Cut off a torn record of %d bytes at the end of %s", torn, file.path)
        if keep is not None:
            file.rewrite(lambda number: bool(keep[number]))
            logger.info("Dropped %d records to be done again", len(keep) - int(keep.sum()))
        elif self.seal_all:
            file.rewrite()
        if self.write_settings:
            self.sidecar.write(self.settings, self.input_path, __version__)
        file.begun = True


def make_plan(
    file: OutputFile,
    input_path: Path,
    config: Mapping[str, Any],
    sampling: Mapping[str, Any],
    *,
    redo_changed: bool,
    retry_errors: bool,
    force: bool,
    overwrite: bool,
) -> Plan:
    """Compare settings, output and input; raises JobError if they do not fit together.

    ``config``: all engine options; ``sampling``: the job's own parameters.
    """
    sidecar = Sidecar(file.path, file.scratch)
    model = str(config["model_path"])
    helpers = [sidecar.path, *file.scratch.places]
    check_apart(file.path, helpers, {"Input": [input_path], "Model": model_files(model)})
    sidecar.check_place()
    file.scratch.check()
    resumed = bool(file.nbytes) and not overwrite
    known = _known_settings(file, sidecar, resumed=resumed, force=force)
    old, sealed = known or (None, True)
    drawn = old.seed if old and not overwrite and not file.is_new else random_seed()
    settings = JobSettings.of(config, sampling, sampling.get("seed", drawn))
    changes = differences(old, settings) if old and resumed else []
    if changes and not force:
        raise JobError(
            f"The output {str(file.path)!r} was begun with other settings: {'; '.join(changes)}. Use the "
            "earlier ones, choose another output, resume anyway with force, or start over with overwrite."
        )
    if changes:
        logger.warning("Resuming with other settings: %s", "; ".join(changes))
    records = RecordTable()
    if resumed:
        records = scan_records(file.read_records(), file.torn_tail, file.path, sealed=sealed)
    state = compare(
        scan_input(input_path),
        records,
        input_path=input_path,
        output_path=file.path,
        redo_changed=redo_changed,
        retry_errors=retry_errors,
    )
    if len(state.damaged):
        _warn_of_damage(state, file.path)
    write = settings != old or not sealed or not sidecar.is_sound
    return Plan(file, sidecar, input_path, settings, state, overwrite, not sealed, write)


def _known_settings(
    file: OutputFile, sidecar: Sidecar, *, resumed: bool, force: bool
) -> tuple[JobSettings, bool] | None:
    """The settings that the output was begun with, and whether its records are sealed.

    Those of a job that has no records yet hold nobody; they only need not be written twice.
    """
    try:
        known = sidecar.read()
    except JobError as error:
        if resumed and not force:
            raise
        if resumed:
            logger.warning("%s", error)
        return None
    if resumed and known is None and not force:
        raise JobError(
            f"The output {str(file.path)!r} exists, but not {sidecar.path.name!r}, which says how it was "
            "made. Choose another output, resume anyway with force, or start over with overwrite."
        )
    return known if resumed or known is None or known[1] else None


def _warn_of_damage(state: Comparison, path: Path) -> None:
    numbers = ", ".join(str(number + 1) for number in state.damaged[:_MAX_NAMED])
    more = ", ..." if len(state.damaged) > _MAX_NAMED else ""
    logger.warning(
        "%d damaged records in %s, on its lines %s%s: what they answered is done again",
        len(state.damaged),
        path,
        numbers,
        more,
    )
