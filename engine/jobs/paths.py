"""Which files a job may read and write; settled before the first is written and before a model is loaded."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from ...errors import JobError

# names under which nobody expects lines of text
_PACKED = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz", ".lz4", ".br", ".zip", ".7z", ".tar", ".tgz")
_BINARY = (".parquet", ".arrow", ".feather", ".avro", ".npy", ".npz", ".pkl", ".pickle", ".xlsx", ".db")
_MODELS = (".gguf", ".safetensors", ".bin", ".pt", ".pth")


def check_input_path(path: object, what: str = "input") -> Path:
    """Return ``path`` if a job can read it; raises JobError for "-", a missing file or a folder."""
    path = _as_path(what, path)
    if str(path) == "-":
        raise JobError(
            f"The job {what} cannot be standard input: a restarted job must be able to read it again. "
            "Write it to a file first."
        )
    status = _status(what, path)
    if status is None:
        raise JobError(f"The {what} file {str(path)!r} does not exist.")
    if not stat.S_ISREG(status.st_mode):
        raise JobError(f"The {what} {str(path)!r} is not a regular file.")
    return path


def check_output_path(path: object) -> Path:
    """Return ``path``, links resolved, if a job can write there; raises JobError saying why it cannot."""
    path = _as_path("output", path)
    if str(path) == "-":
        raise JobError("The job output cannot be standard output: it is what a restarted job resumes from.")
    if path.suffix.lower() in _PACKED + _BINARY + _MODELS:
        raise JobError(
            f"The output {str(path)!r} would hold plain lines of JSON, and {path.suffix!r} says otherwise: "
            "records are appended one by one, so that a kill loses none. Name it .jsonl, and pack or convert "
            "it when the job is finished."
        )
    path = Path(os.path.realpath(path))
    status = _status("output", path)
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise JobError(f"The output {str(path)!r} is not a regular file.")
    folder = _status("output folder", path.parent)
    if folder is None or not stat.S_ISDIR(folder.st_mode):
        raise JobError(f"The output folder {str(path.parent)!r} does not exist.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise JobError(
            f"The output folder {str(path.parent)!r} cannot be written to. Choose another, or change its "
            "permissions: the job's settings are kept beside the output."
        )
    if status is not None and _is_standard_stream(status):
        raise JobError(
            f"The output {str(path)!r} is where this process writes its messages. Choose a file of its own."
        )
    return path


def check_apart(output: Path, helpers: Iterable[Path], foreign: Mapping[str, Iterable[Path]]) -> None:
    """Raise JobError if the output or a helper file is one of the ``foreign`` files, by whatever name."""
    helpers = list(helpers)
    for what, paths in foreign.items():
        for path in paths:
            if _is_same(path, output):
                raise JobError(f"{what} and output are the same file: {str(output)!r}.")
            if any(_is_same(path, helper) for helper in helpers):
                raise JobError(
                    f"The {what.lower()} {str(path)!r} stands where a job with the output {str(output)!r} "
                    "keeps a file of its own. Choose another output."
                )


def _as_path(what: str, path: object) -> Path:
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]
    except TypeError as error:
        hint = " Give its path." if hasattr(path, "read") or hasattr(path, "write") else ""
        raise JobError(f"The {what} must be the path of a file, got {type(path).__name__}.{hint}") from error
    if not text or "\0" in text:
        raise JobError(f"The {what} must be the path of a file, got {text!r}.")
    return Path(text)


def _status(what: str, path: Path) -> os.stat_result | None:
    """What is at ``path``, or None; raises JobError if that cannot be told."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise JobError(f"The {what} {str(path)!r} cannot be used: {error.strerror}.") from error


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, by links of either kind or by names in another case."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def _is_standard_stream(status: os.stat_result) -> bool:
    for descriptor in (1, 2):
        try:
            if os.path.samestat(status, os.fstat(descriptor)):
                return True
        except OSError:  # closed
            pass
    return False
