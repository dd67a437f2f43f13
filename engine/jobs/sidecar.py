"""``<output>.job.json``: what the answers in an output depend on, so that no file mixes two jobs.

It holds the job's seed and its settings: the model (name and a digest of the files, so that a moved
model is still the same one), the job's sampling parameters, and the engine options that can change an
answer. It is written before the first record, replaced as a whole, and never needed to read the output.
It is one sealed line (:mod:`.seal`), so that a bit that flips in it is put right.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import JobError
from .record_json import encode_record
from .scratch import SETTINGS, Scratch
from .seal import is_sealed, mended, seal

logger = logging.getLogger("rootlet.jobs")

_FORMAT = 2
_HEAD = b'{"rootlet_job": '  # every job file begins so,
_UNSEALED_HEAD = b'{\n "format": 1,'  # or so: those of before 0.2.0, without a seal
_MAX_BYTES = 16 << 20
_EDGE = 1 << 20  # bytes hashed at both ends of each model file
_MODEL_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf", ".json", ".model", ".txt", ".jinja")

# Engine options that change speed, memory or manners, never an answer. Any other option counts as one that
# may change it, so that a new option is on the safe side until it is listed here.
SPEED_OPTIONS = frozenset(
    (
        "model_path",  # compared as the model
        "trust_remote_code",
        "device",
        "download_dir",
        "max_total_tokens",
        "kv_cache_bytes",
        "mem_fraction_static",
        "cpu_offload_gb",
        "page_size",
        "disable_radix_cache",
        "max_running_requests",
        "chunked_prefill_size",
        "max_prefill_tokens",
        "schedule_policy",
        "disable_overlap_schedule",
        "stream_interval",
        "random_seed",  # every line of a job has a seed
        "step_by_hand",
    )
)


@dataclass(frozen=True)
class JobSettings:
    """What every answer of a job depends on besides its line."""

    model: Mapping[str, Any]
    engine: Mapping[str, Any]
    sampling_params: Mapping[str, Any]
    seed: int

    @classmethod
    def of(cls, engine_options: Mapping[str, Any], sampling: Mapping[str, Any], seed: int) -> JobSettings:
        """From all engine options (``model_path`` among them) and the job's own sampling parameters."""
        given = {name: value for name, value in engine_options.items() if name not in SPEED_OPTIONS}
        # through JSON, so that what is compared is what a file gives back (lists, string keys)
        plain = json.loads(json.dumps({"engine": given, "sampling": dict(sampling)}, default=str))
        model = model_identity(str(engine_options["model_path"]))
        return cls(model, plain["engine"], plain["sampling"], seed)


def model_identity(model_path: str) -> dict[str, Any]:
    """Name and content digest of a model.

    The digest covers the names and sizes of its files and both ends of each, which is quick at any size
    and tells apart other weights, other configs and other quantizations. A hub id has no digest.
    """
    path = Path(model_path)
    if not path.exists():
        return {"name": model_path}
    state = hashlib.blake2b(digest_size=16)
    for file in model_files(model_path):
        size = file.stat().st_size
        name = "" if path.is_file() else file.name  # a file that is the whole model may be renamed
        state.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as data:
            state.update(data.read(_EDGE))
            data.seek(max(0, size - _EDGE))
            state.update(data.read(_EDGE))
    return {"name": path.resolve().name, "digest": state.hexdigest()}


def model_files(model_path: str) -> list[Path]:
    """The files of a local model, in one order; a hub id has none."""
    path = Path(model_path)
    if not path.is_dir():
        return [path] if path.is_file() else []
    return sorted(p for p in path.iterdir() if p.suffix in _MODEL_SUFFIXES)


class Sidecar:
    """The job file beside an output."""

    def __init__(self, output: Path, scratch: Scratch) -> None:
        self.path = output.with_name(output.name + ".job.json")
        self._scratch = scratch
        self.is_sound = True  # False: what was read had to be put right, so write it anew

    def check_place(self) -> None:
        """Raise JobError if something stands here that no job has written."""
        data = self._load()
        if data and not any(data.startswith(head[: len(data)]) for head in (_HEAD, _UNSEALED_HEAD)):
            raise self._unusable("no job wrote it")

    def read(self) -> tuple[JobSettings, bool] | None:
        """The settings of the job that wrote the output, or None if there is no job file.

        The flag: whether the job's records are sealed; before 0.2.0 they were not. Raises JobError if the
        file is there and is not a job file, or is damaged.
        """
        data = self._load()
        if data is None:
            return None
        try:
            value = json.loads(data)
            if value.get("format") == 1 and data.startswith(_UNSEALED_HEAD):
                return _settings(value), False
            if value["rootlet_job"] != _FORMAT:
                raise self._unusable(
                    f"it is of format {value['rootlet_job']!r}, this version writes {_FORMAT}"
                )
            if not is_sealed(data):
                raise self._unusable("its checksum is wrong, so it was changed or damaged")
            return _settings(value), True
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            if isinstance(error, JobError):
                raise
            raise self._unusable(f"it is damaged ({type(error).__name__}: {error})") from error

    def write(self, settings: JobSettings, input_path: Path, version: str) -> None:
        """Put the job file in place, complete and on disk; raises JobError if the disk does not allow it."""
        data = {
            "rootlet_job": _FORMAT,
            "rootlet_version": version,
            "input": str(input_path),
            "settings": asdict(settings),
        }
        try:
            with self._scratch.place(SETTINGS) as fresh:
                with fresh.open("xb") as file:
                    file.write(seal(encode_record(data)) + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(fresh, self.path)
        except OSError as error:
            raise JobError(f"The job file {str(self.path)!r} cannot be written: {error}.") from error

    def _load(self) -> bytes | None:
        """What the file holds, without line end and with a flipped bit put right; None if there is none."""
        try:
            if not os.path.lexists(self.path):
                return None
            if not stat.S_ISREG(os.lstat(self.path).st_mode):
                raise self._unusable("it is not a regular file")
            with self.path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise self._unusable(str(error)) from error
        if len(data) > _MAX_BYTES:
            raise self._unusable("it is too long to be a job file")
        line = data.removesuffix(b"\n")
        if is_sealed(line):
            return line
        self.is_sound = False
        line = data[:-1]  # the line end may be what has flipped
        if data.startswith(_UNSEALED_HEAD) or is_sealed(line):
            return line
        fixed = mended(line)
        return fixed if fixed is not None and fixed.startswith(_HEAD) else data

    def _unusable(self, why: str) -> JobError:
        return JobError(
            f"The job file {str(self.path)!r} cannot be used: {why}. If it is yours, move it away or choose "
            "another output. If it is the job's, the records are safe in the output: restore the file, or "
            "remove it and resume with force (and the seed of the job), or start over with overwrite."
        )


def _settings(value: Any) -> JobSettings:
    """The settings in a job file; raises KeyError, TypeError or ValueError if no job wrote them."""
    settings = JobSettings(**value["settings"])
    kinds = {"model": dict, "engine": dict, "sampling_params": dict, "seed": int}
    for name, kind in kinds.items():
        if type(getattr(settings, name)) is not kind:
            raise TypeError(f"{name} is {getattr(settings, name)!r}")
    return settings


def differences(old: JobSettings, new: JobSettings) -> list[str]:
    """Sentences saying what differs, e.g. ``sampling_params.temperature was 0.0, is 0.7``."""
    before, after = asdict(old), asdict(new)
    if old.model.get("digest") and old.model.get("digest") == new.model.get("digest"):
        after["model"] = before["model"]  # renamed or moved, but the same files
    found = []
    for group in ("model", "engine", "sampling_params"):
        names = sorted({*before[group], *after[group]})
        found += [
            f"{group}.{name} was {was!r}, is {now!r}"
            for name in names
            if (was := before[group].get(name)) != (now := after[group].get(name))
        ]
    return found
