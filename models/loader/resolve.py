"""From what the user calls a model (a folder, a GGUF file, a name on the Hub) to files on disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...errors import ConfigError, WeightsError
from ..fields import list_names
from .folder_kinds import describe_adapter
from .gguf_file import is_gguf
from .shards import Shards, find_shards, is_weight_file

LOAD_FORMATS: Final = ("auto", "safetensors", "pt", "gguf", "dummy")

# load format -> (name of the single file without suffix, suffix), in order of preference
_WEIGHT_FILES: Final = {"safetensors": ("model", ".safetensors"), "pt": ("pytorch_model", ".bin")}

_SUFFIXES: Final = tuple(suffix for _, suffix in _WEIGHT_FILES.values())
_PART: Final = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)

_SMALL_FILES: Final = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.py"]
_NOT_WANTED: Final = ["*/*", "consolidated*", "training_args*", "optimizer*", "scheduler*", "adapter_model*"]
_HUB_ID: Final = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_HUB_GGUF: Final = re.compile(r"(\w[\w.-]*/\w[\w.-]*)/(.+\.gguf)", re.IGNORECASE)


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are.

    ``path`` is a folder or, for GGUF, a file. ``format`` is what to load: safetensors, pt, gguf or
    dummy. ``shards`` are the weight files of the first two. ``revision`` is the commit on the Hub, None for
    local files.
    """

    model_path: str
    path: Path
    format: str
    shards: Shards | None = None
    revision: str | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether config and tokenizer come from a GGUF file."""
        return self.path.is_file()


def resolve_model(
    model_path: str | Path,
    load_format: str = "auto",
    revision: str | None = None,
    download_dir: str | Path | None = None,
    check: Callable[[Path], None] | None = None,
) -> ModelSource:
    """Find the files of ``model_path``, downloading them if it is a name on the Hub.

    ``model_path`` is a folder, a GGUF file, ``owner/name`` or ``owner/name/file.gguf``; what exists
    on disk wins. ``download_dir`` replaces the Hub's own cache folder. Files in the cache are used when
    the Hub cannot be reached. ``check`` is called with the folder before its weights are looked for or
    downloaded; what it raises comes first. Raises ConfigError if there is no such model or format,
    WeightsError if it has no weights.
    """
    if load_format not in LOAD_FORMATS:
        raise ConfigError(f"load_format must be one of {', '.join(LOAD_FORMATS)}, got {load_format!r}.")
    check = _accept if check is None else check
    path = find_local(model_path)
    if path is not None:
        return _local(str(model_path), path, load_format, check)
    return _from_hub(str(model_path), load_format, revision, download_dir, check)


def find_local(model_path: str | Path) -> Path | None:
    """``model_path`` as a path if it exists, None if it can only be a name on the Hub.

    Raises ConfigError if it is neither.
    """
    path = Path(model_path).expanduser()
    name = str(model_path)
    if name and path.exists():
        return path
    if isinstance(model_path, Path) or not (_HUB_ID.fullmatch(name) or _HUB_GGUF.fullmatch(name)):
        raise ConfigError(
            f"model_path {name!r}: there is no such file or folder, and it is not a name on the Hugging "
            "Face Hub (owner/name, or owner/name/file.gguf)."
        )
    return None


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that ``path`` is, or the only one in the folder ``path``; None if there is none.

    Raises WeightsError if a folder has several.
    """
    if is_gguf(path):
        return path
    found = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(found) > 1 and all(_PART.search(file.name) for file in found):
        return found[0]  # which says that it is one of several parts
    if len(found) > 1:
        names = list_names([file.name for file in found])
        raise WeightsError(f"{path}: the folder has several GGUF files; give the path of one: {names}.")
    return found[0] if found else None


def download_small_files(name: str, revision: str | None, download_dir: str | Path | None) -> Path:
    """Fetch config and tokenizer files of a Hub model; return the local folder. Raises ConfigError."""
    return _snapshot(name, revision, download_dir, _SMALL_FILES)


def download_gguf(name: str, revision: str | None, download_dir: str | Path | None) -> Path | None:
    """Fetch ``owner/name/file.gguf`` from the Hub; None for other names. Raises ConfigError."""
    match = _HUB_GGUF.fullmatch(name)
    if match is None:
        return None

    def fetch() -> str:
        from huggingface_hub import hf_hub_download

        return hf_hub_download(match[1], match[2], revision=revision, cache_dir=download_dir)

    return Path(_explain_hub_errors(name, revision, fetch))


def _local(model_path: str, path: Path, load_format: str, check: Callable[[Path], None]) -> ModelSource:
    if not path.is_dir():
        if not path.is_file():
            raise ConfigError(f"model_path {model_path!r} is neither a folder nor a file.")
        if not is_gguf(path):
            folder = path.absolute().parent
            raise ConfigError(
                f"model_path {model_path!r} is a file but not GGUF; give the folder of the model"
                + (f", {str(folder)!r}." if (folder / "config.json").is_file() else ".")
            )
        return _gguf_source(model_path, path, load_format)
    if load_format != "gguf" and not _only_gguf(path):
        check(path)
    if load_format == "dummy":
        return ModelSource(model_path, path, "dummy")
    shards = _find_weights(path, load_format)
    if shards is not None:
        return ModelSource(model_path, path, shards[0], shards[1])
    if load_format in ("auto", "gguf"):
        file = find_gguf(path)
        if file is not None:
            return ModelSource(model_path, file, "gguf")
    raise _no_weights(model_path, load_format, path)


def _accept(folder: Path) -> None:
    """Any folder will do."""


def _only_gguf(folder: Path) -> bool:
    """Whether a folder's weights are in GGUF files alone, so that it needs no config.json."""
    others = any(is_weight_file(file.name) for suffix in _SUFFIXES for file in folder.glob(f"*{suffix}"))
    return not others and any(folder.glob("*.gguf"))


def _gguf_source(model_path: str, file: Path, load_format: str, revision: str | None = None) -> ModelSource:
    if load_format not in ("auto", "gguf", "dummy"):
        raise ConfigError(
            f"{file} is a GGUF file, but load_format is {load_format!r}; leave it out or set 'gguf'."
        )
    return ModelSource(model_path, file, "dummy" if load_format == "dummy" else "gguf", revision=revision)


def _find_weights(folder: Path, load_format: str) -> tuple[str, Shards] | None:
    """The first kind of weight files, of those ``load_format`` allows, that ``folder`` has."""
    for kind, (stem, suffix) in _WEIGHT_FILES.items():
        shards = find_shards(folder, stem, suffix) if load_format in ("auto", kind) else None
        if shards is not None:
            return kind, shards
    return None


def _from_hub(
    name: str,
    load_format: str,
    revision: str | None,
    download_dir: str | Path | None,
    check: Callable[[Path], None],
) -> ModelSource:
    file = download_gguf(name, revision, download_dir)
    if file is not None:
        return _gguf_source(name, file, load_format, revision)
    folder = download_small_files(name, revision, download_dir)
    check(folder)
    commit = folder.name  # the cache names a snapshot after its commit: later files come from the same one
    if load_format == "dummy":
        return ModelSource(name, folder, "dummy", revision=commit)
    for kind, (_, suffix) in _WEIGHT_FILES.items():
        if load_format in ("auto", kind):
            folder = _snapshot(name, commit, download_dir, [f"*{suffix}"])
            found = _find_weights(folder, kind)
            if found is not None:
                return ModelSource(name, folder, kind, found[1], commit)
    raise _no_weights(name, load_format, folder)


def _no_weights(model_path: str, load_format: str, folder: Path) -> WeightsError:
    adapter = describe_adapter(folder)
    if adapter is not None:
        return WeightsError(f"model_path {model_path!r} has no weights: {adapter}.")
    wanted = {
        "safetensors": "*.safetensors files",
        "pt": "pytorch_model*.bin files",
        "gguf": "GGUF file (on the Hub, name it: owner/name/file.gguf)",
        "auto": "*.safetensors, pytorch_model*.bin or GGUF files",
    }[load_format]
    return WeightsError(
        f"model_path {model_path!r} has no {wanted} (load_format={load_format!r}). "
        "Complete the download, or use load_format='dummy' for random weights."
    )


def _snapshot(name: str, revision: str | None, download_dir: str | Path | None, patterns: list[str]) -> Path:
    def fetch() -> str:
        from huggingface_hub import errors, snapshot_download, try_to_load_from_cache

        try:
            return snapshot_download(
                name,
                revision=revision,
                cache_dir=download_dir,
                allow_patterns=patterns,
                ignore_patterns=_NOT_WANTED,
            )
        except errors.LocalEntryNotFoundError:
            # Offline, the Hub's client wants every file the patterns match, also those another program left
            # out of the cache because nobody needs them. What we need is checked when it is opened.
            config = try_to_load_from_cache(name, "config.json", cache_dir=download_dir, revision=revision)
            if not isinstance(config, str):
                raise
            return str(Path(config).parent)

    return Path(_explain_hub_errors(name, revision, fetch))


def _explain_hub_errors(name: str, revision: str | None, fetch: Callable[[], str]) -> str:
    """Run a download; turn the Hub's errors into a ConfigError that says what to do."""
    from huggingface_hub import errors

    at = f" at revision {revision!r}" if revision else ""
    try:
        return fetch()
    except errors.GatedRepoError as error:
        reason = "the Hub asks to accept its licence there first, then to log in (hf auth login)"
        raise ConfigError(f"model_path {name!r}: {reason}.") from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(
            f"model_path {name!r} has no revision {revision!r} on the Hugging Face Hub."
        ) from error
    except errors.RepositoryNotFoundError as error:
        reason = "neither a path on this machine nor a model on the Hugging Face Hub that you may read"
        raise ConfigError(f"model_path {name!r} is {reason}.") from error
    except errors.HFValidationError as error:
        raise ConfigError(
            f"model_path {name!r} is neither an existing path nor a valid Hub name: {error}"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ConfigError(
            f"model_path {name!r}{at} is no path on this machine, the Hugging Face Hub cannot be reached (or "
            "HF_HUB_OFFLINE is set) and its cache does not hold all files. Download the model first and give "
            "its folder, or set download_dir to the cache that has it."
        ) from error
    except OSError as error:  # the Hub's HTTP errors derive from it too
        raise ConfigError(f"model_path {name!r}{at}: the download from the Hub failed: {error}") from error
