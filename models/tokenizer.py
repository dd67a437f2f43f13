"""Loading a tokenizer: from a folder or the Hub through transformers, from a GGUF file by ourselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import ConfigError, ModelError
from .gguf_tokenizer import load_gguf_tokenizer
from .loader.folder_kinds import refuse_special_files
from .loader.resolve import download_gguf, download_small_files, find_gguf, find_local

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_MODES: Final = ("auto", "slow")

_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tokenizer_config.json",
)


def load_tokenizer(
    path: str | Path,
    *,
    mode: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    download_dir: str | Path | None = None,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    ``path`` is what the model is loaded from: a folder, a GGUF file (or a folder with one and no
    tokenizer files), ``owner/name`` or ``owner/name/file.gguf`` on the Hub, whose ``revision`` and
    cache folder (``download_dir``) can be given. ``mode`` "slow" asks transformers for its Python
    implementation, where it has one. ``trust_remote_code`` lets transformers run tokenizer code that comes
    with the model.

    Raises ConfigError for an impossible option, ModelError if there is no usable tokenizer.
    """
    if mode not in TOKENIZER_MODES:
        raise ConfigError(f"tokenizer_mode must be one of {', '.join(TOKENIZER_MODES)}, got {mode!r}.")
    local = find_local(path) or download_gguf(str(path), revision, download_dir)
    if local is None:
        local = download_small_files(str(path), revision, download_dir)
    gguf_file = None if _has_tokenizer_files(local) else find_gguf(local)
    if gguf_file is None:
        return _load_folder(local, mode, trust_remote_code)
    if mode == "slow":
        raise ConfigError(f"{gguf_file}: a GGUF file has no slow tokenizer; use tokenizer_mode='auto'.")
    return load_gguf_tokenizer(gguf_file)


def _has_tokenizer_files(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _load_folder(folder: Path, mode: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: not a folder or a GGUF file; a tokenizer cannot be loaded from it.")
    if not _has_tokenizer_files(folder) and not trust_remote_code:
        raise ModelError(
            f"{folder}: no tokenizer files ({', '.join(_TOKENIZER_FILES)}). Complete the folder, or give "
            "another one as tokenizer_path."
        )
    refuse_special_files(folder)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(folder), use_fast=mode != "slow", trust_remote_code=trust_remote_code, local_files_only=True
        )
    # transformers and tokenizers raise OSError, ValueError, KeyError, even Exception itself for bad files
    except Exception as error:
        raise ModelError(f"{folder}: transformers cannot load the tokenizer: {error}") from error
