"""Which weight files make up a checkpoint folder, and what the index of a sharded one promises."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ...errors import WeightsError
from ..fields import list_names, shorten
from .files import read_json

logger = logging.getLogger("rootlet.models")

# Mistral's second copy of the same weights under other names, what trainers leave, and adapters
_NOT_WEIGHTS: Final = ("consolidated", "training_args", "optimizer", "scheduler", "adapter_model")
_MAX_FILES: Final = 10_000
_VARIANT: Final = re.compile(r"(?:model|pytorch_model)\.[^.]+?(?:-\d+-of-\d+)?\.(?:safetensors|bin)")


@dataclass(frozen=True)
class Shards:
    """The weight files of a folder in name order, and what an index says.

    ``expected`` maps a file to the tensor names the index places in it; it is empty without an index.
    """

    files: tuple[Path, ...]
    expected: dict[Path, frozenset[str]] = field(default_factory=dict)

    def check_names(self, file: Path, found: set[str]) -> None:
        """Raise WeightsError if ``file`` lacks a tensor the index places in it."""
        missing = sorted(self.expected.get(file, frozenset()) - found)
        if missing:
            shown = list_names(missing)
            count = len(missing)
            raise WeightsError(
                f"{file}: the index places {count} tensor(s) here that the file does not have: {shown}. "
                "The index and the file are of different versions; download both again."
            )


def find_shards(folder: Path, stem: str, suffix: str) -> Shards | None:
    """Find the weight files of ``folder`` ending in ``suffix``, or None if it has none.

    In the order of transformers: one file ``{stem}{suffix}``; an index ``{stem}{suffix}.index.json`` and the
    files it names. Then, which transformers does not, every file ending in ``suffix`` that
    :func:`is_weight_file` and is no variant of the others (``model.fp16.safetensors``). A single file beside
    an index of other files is logged as a warning: one of the two is left from an earlier save. Raises
    WeightsError if the index cannot be read or names a file that is not there.
    """
    index = folder / f"{stem}{suffix}.index.json"
    single = folder / f"{stem}{suffix}"
    if single.is_file():
        _warn_of_stale_index(single, index)
        return Shards((single,))
    if index.is_file():
        return _read_index(folder, index)
    others = sorted(
        path for path in folder.glob(f"*{suffix}") if is_weight_file(path.name) and path.is_file()
    )
    plain = [path for path in others if not _VARIANT.fullmatch(path.name)]
    return Shards(tuple(plain or others)) if others else None


def is_weight_file(name: str) -> bool:
    """Whether a file name with a weights suffix belongs to the model in Hugging Face form."""
    return not name.startswith(_NOT_WEIGHTS)


def _warn_of_stale_index(single: Path, index: Path) -> None:
    """Log if ``index`` speaks of other files than ``single``, which is loaded."""
    if not index.is_file():
        return
    try:
        if set(_read_weight_map(index).values()) == {single.name}:
            return  # what mlx-lm writes
    except (WeightsError, TypeError):
        pass
    logger.warning(
        "%s has %s and an index of other files, %s: one of the two is left from an earlier save. The single"
        " file is loaded, as transformers does. Delete it to load what the index names, or else the index.",
        single.parent,
        single.name,
        index.name,
    )


def _read_index(folder: Path, index: Path) -> Shards:
    expected: dict[str, set[str]] = {}
    for tensor, file in _read_weight_map(index).items():
        if not isinstance(file, str) or os.path.basename(file) != file or not file:
            place = f"{shorten(tensor)} is placed in {shorten(file)}"
            raise WeightsError(f"{index}: {place}; a file of the same folder is required.")
        expected.setdefault(file, set()).add(tensor)
    if len(expected) > _MAX_FILES:
        raise WeightsError(f"{index}: names {len(expected)} files; at most {_MAX_FILES} will do.")
    absent = sorted(file for file in expected if not (folder / file).is_file())
    if absent:
        raise WeightsError(
            f"{folder}: {index.name} names {len(absent)} file(s) that are missing: {list_names(absent)}. "
            "The download is incomplete; fetch the folder again."
        )
    files = {folder / file: frozenset(names) for file, names in expected.items()}
    return Shards(tuple(sorted(files)), files)


def _read_weight_map(index: Path) -> dict[str, object]:
    weight_map = read_json(index, WeightsError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(
            f"{index}: 'weight_map' must be an object naming tensors, got {shorten(weight_map)}."
        )
    return weight_map
