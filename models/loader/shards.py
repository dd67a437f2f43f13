"""Which weight files make up a checkpoint folder, and what the index of a sharded one promises."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import WeightsError


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
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            count = len(missing)
            raise WeightsError(
                f"{file}: the index places {count} tensor(s) here that the file does not have: {shown}. "
                "The index and the file are of different versions; download both again."
            )


def find_shards(folder: Path, stem: str, suffix: str) -> Shards | None:
    """Find the weight files of ``folder`` ending in ``suffix``, or None if it has none.

    In this order: an index ``{stem}{suffix}.index.json`` and the files it names; one file
    ``{stem}{suffix}``; every file ending in ``suffix`` except ``consolidated*`` (Mistral's second copy of
    the same weights under other names) and trainer leftovers. Raises WeightsError if the index cannot be
    read or names a file that is not there.
    """
    index = folder / f"{stem}{suffix}.index.json"
    if index.is_file():
        return _read_index(folder, index)
    single = folder / f"{stem}{suffix}"
    if single.is_file():
        return Shards((single,))
    others = sorted(path for path in folder.glob(f"*{suffix}") if is_weight_file(path.name))
    return Shards(tuple(others)) if others else None


def is_weight_file(name: str) -> bool:
    """Whether a file name with a weights suffix belongs to the model in Hugging Face form."""
    return not name.startswith(("consolidated", "training_args", "optimizer", "scheduler", "adapter_model"))


def _read_index(folder: Path, index: Path) -> Shards:
    expected: dict[Path, set[str]] = {}
    for tensor, file in _read_weight_map(index).items():
        if not isinstance(file, str) or Path(file).name != file:
            raise WeightsError(
                f"{index}: {tensor} is placed in {file!r}; a file of the same folder is required."
            )
        expected.setdefault(folder / file, set()).add(tensor)
    absent = sorted(path.name for path in expected if not path.is_file())
    if absent:
        raise WeightsError(
            f"{folder}: {index.name} names {len(absent)} file(s) that are missing: {', '.join(absent)}. "
            "The download is incomplete; fetch the folder again."
        )
    return Shards(tuple(sorted(expected)), {file: frozenset(names) for file, names in expected.items()})


def _read_weight_map(index: Path) -> dict[str, object]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{index}: not JSON with an object 'weight_map' ({error!r}).") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index}: 'weight_map' must be an object naming tensors, got {weight_map!r}.")
    return weight_map
