"""Reading the small files of a model folder, which may be anything that a stranger put there."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ...errors import ModelError

MAX_JSON_BYTES: Final = 256 * 2**20
"""More than any tokenizer or index has: the largest known ones take a tenth of this."""

_NAMES_SHOWN: Final = 10


def check_regular(file: Path, error: type[ModelError] = ModelError) -> int:
    """The size of ``file`` in bytes. Raises ``error`` if it is a pipe, a device, a folder or the like.

    Opening such a file may wait for ever, reading it may never end.
    """
    try:
        status = file.stat()
    except (OSError, RuntimeError) as reason:  # pathlib before 3.13 has RuntimeError for a loop of links
        raise error(f"{file}: cannot be read: {reason}.") from reason
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{file}: not a regular file but {_kind(status.st_mode)}; it cannot be read as one.")
    return status.st_size


def read_json(file: Path, error: type[ModelError] = ModelError) -> dict[str, Any]:
    """The JSON object in ``file``, with or without a byte order mark.

    Raises ``error`` if the file is not regular, above :data:`MAX_JSON_BYTES`, no JSON, nested too deeply for
    Python's reader, or something other than an object.
    """
    size = check_regular(file, error)
    if size > MAX_JSON_BYTES:
        raise error(f"{file}: {size} bytes of JSON; at most {MAX_JSON_BYTES} are read.")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except RecursionError as reason:
        raise error(f"{file}: cannot be read as JSON: it is nested too deeply.") from reason
    except (OSError, ValueError) as reason:
        raise error(f"{file}: cannot be read as JSON: {reason}.") from reason
    if not isinstance(content, dict):
        raise error(f"{file}: cannot be read: expected a JSON object, got {type(content).__name__}.")
    return content


def list_names(names: Sequence[str]) -> str:
    """``names`` for a message, the first few of many."""
    shown = ", ".join(name if len(name) <= 200 else name[:200] + "..." for name in names[:_NAMES_SHOWN])
    rest = len(names) - _NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")
