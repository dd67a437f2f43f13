"""``<output>.job.json``: what the answers in an output depend on, so that no file mixes two jobs.

It holds the job's seed and its settings: the model (name and a digest of the files, so that a moved
model is still the same one), the job's sampling parameters, and the engine options that can change an
answer. It is written before the first record, replaced as a whole, and never needed to read the output.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import JobError

_FORMAT = 1
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
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in _MODEL_SUFFIXES)
    for file in files:
        size = file.stat().st_size
        name = "" if path.is_file() else file.name  # a file that is the whole model may be renamed
        state.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as data:
            state.update(data.read(_EDGE))
            data.seek(max(0, size - _EDGE))
            state.update(data.read(_EDGE))
    return {"name": path.resolve().name, "digest": state.hexdigest()}


class Sidecar:
    """The job file beside an output."""

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(output.name + ".job.json")

    def read(self) -> JobSettings | None:
        """The settings of the job that wrote the output, or None if there is no job file.

        Raises JobError if the file is there and is not a job file.
        """
        try:
            data = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise self._unusable(error) from error
        try:
            if data["format"] != _FORMAT:
                raise ValueError(f"format {data['format']!r} is not {_FORMAT}")
            return JobSettings(**data["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._unusable(error) from error

    def write(self, settings: JobSettings, input_path: Path, version: str) -> None:
        """Put the job file in place, complete and on disk."""
        data = {
            "format": _FORMAT,
            "rootlet_version": version,
            "input": str(input_path),
            "settings": asdict(settings),
        }
        fresh = self.path.with_name(self.path.name + ".tmp")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(data, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self.path)

    def _unusable(self, error: Exception) -> JobError:
        return JobError(
            f"The job file {str(self.path)!r} cannot be used: {error!r}. Move it and the output away, "
            "or start over with overwrite."
        )


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
