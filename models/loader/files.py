"""Reading the small files of a model folder, which may be anything that a stranger put there."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, Final

from ...errors import ModelError

MAX_TEXT_BYTES: Final = 256 * 2**20
"""More than any tokenizer or index has: the largest known ones take a tenth of this."""


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


def check_size(file: Path, error: type[ModelError] = ModelError) -> None:
    """Raise ``error`` if ``file`` is larger than :data:`MAX_TEXT_BYTES`; a folder is not."""
    size = file.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise error(f"{file}: {size} bytes; at most {MAX_TEXT_BYTES} are read of a file of text.")


def read_json(file: Path, error: type[ModelError] = ModelError) -> dict[str, Any]:
    """The JSON object in ``file``, with or without a byte order mark.

    Raises ``error`` if the file is not regular, above :data:`MAX_TEXT_BYTES`, no JSON, nested too deeply for
    Python's reader, or something other than an object.
    """
    check_regular(file, error)
    check_size(file, error)
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except RecursionError as reason:
        raise error(f"{file}: cannot be read as JSON: it is nested too deeply.") from reason
    except (OSError, ValueError) as reason:
        raise error(f"{file}: cannot be read as JSON: {reason}.") from reason
    if not isinstance(content, dict):
        raise error(f"{file}: cannot be read: expected a JSON object, got {type(content).__name__}.")
    return content


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")
