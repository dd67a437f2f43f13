"""Command-line options made from the dataclasses, so that none is ever missing or stale.

Every field of EngineConfig and SamplingParams becomes ``--name-with-dashes``. An option that is not given
stays out of the result: the dataclass keeps its say over defaults.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

from ..engine.config import EngineConfig
from ..sampling.params import SamplingParams

_ENGINE, _SAMPLING = "engine.", "sampling."  # prefixes of the attributes that hold the values

# fields that make no sense on a command line, or have an option written by hand
_SKIPPED = ("model_path", "step_by_hand", "skip_tokenizer_init")

# where the docstring of SamplingParams says it in prose, or with Python in mind
_SAMPLING_HELP = {
    "stop": "text that ends the request; repeat the option for several",
    "stop_token_ids": "token id that ends the request; repeat the option for several",
    "logit_bias": "JSON object of token id to bias, each in [-100, 100], added to the raw logits",
    "json_schema": "JSON schema that the output must satisfy",
    "regex": "regular expression that the output must match",
    "ebnf": "grammar in EBNF that the output must follow",
    "structural_tag": "JSON of a structural tag: free text with structured parts",
    "choice": "text that the output may be; repeat the option for several",
    "custom_params": "JSON object for your own logit processor",
    "skip_special_tokens": "leave special tokens out of the text",
    "spaces_between_special_tokens": "put spaces between special tokens in the text",
}
_DOCSTRING_ITEM = re.compile(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", re.MULTILINE)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--model`` and an option for every field of EngineConfig."""
    group = parser.add_argument_group("engine options")
    group.add_argument(
        "--model",
        "--model-path",
        dest="model",
        metavar="PATH",
        required=True,
        help="folder, .gguf file or hub id",
    )
    for option in dataclasses.fields(EngineConfig):
        if option.name not in _SKIPPED:
            _add(group, option, _ENGINE, option.metadata["help"], option.metadata.get("choices"))


def add_sampling_options(parser: argparse.ArgumentParser, note: str = "") -> None:
    """Add an option for every field of SamplingParams; ``note`` says what they apply to."""
    group = parser.add_argument_group("sampling parameters", note or None)
    texts = _documented(SamplingParams.__doc__ or "") | _SAMPLING_HELP
    for option in dataclasses.fields(SamplingParams):
        _add(group, option, _SAMPLING, texts.get(option.name, ""), None)


def add_log_level(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--log-level``."""
    levels = ("debug", "info", "warning", "error")
    parser.add_argument(
        "--log-level", choices=levels, default=default, help=f"what to log (default: {default})"
    )


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The engine options given on the command line (the model is ``args.model``)."""
    return _given(args, _ENGINE)


def sampling_params(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling parameters given on the command line."""
    return _given(args, _SAMPLING)


def _given(args: argparse.Namespace, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in vars(args).items() if name.startswith(prefix)}


def _documented(docstring: str) -> dict[str, str]:
    """The ``name: what it does`` items of a docstring, as plain text."""
    items = _DOCSTRING_ITEM.findall(docstring)
    return {name: " ".join(text.replace("`", "").split()).rstrip(".") for name, text in items}


def _add(
    group: Any, option: dataclasses.Field[Any], prefix: str, text: str, choices: tuple[str, ...] | None
) -> None:
    flag = "--" + option.name.replace("_", "-")
    shared: dict[str, Any] = {"dest": prefix + option.name, "default": argparse.SUPPRESS}
    default = option.default
    names = str(option.type).split(" | ")
    if names[0] == "bool":
        action = "store_true" if default is False else argparse.BooleanOptionalAction
        group.add_argument(flag, action=action, help=_escape(text), **shared)
        return
    if default not in (None, (), "{}"):
        text = f"{text} (default: {default})"
    convert, metavar = _converter(names)
    shared |= {"type": convert, "help": _escape(text)}
    if choices:
        group.add_argument(flag, choices=choices, **shared)
    elif any(name.startswith("Iterable") for name in names):
        group.add_argument(flag, action="append", metavar=metavar, **shared)
    else:
        group.add_argument(flag, metavar=metavar, **shared)


def _converter(names: list[str]) -> tuple[Callable[[str], Any], str]:
    """How to read a value of a type such as ``int | None`` or ``Mapping[int, float]``, and its name."""
    if "Iterable[int]" in names:
        return int, "INT"
    if "str" in names or "Iterable[str]" in names:
        return str, "TEXT"
    if names[0] not in ("int", "float"):
        return _json_object, "JSON"
    kind = int if names[0] == "int" else float
    return _or_none(kind) if "None" in names else kind, kind.__name__.upper()


def _or_none(kind: type) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    convert.__name__ = kind.__name__  # argparse says "invalid int value"
    return convert


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value


def _escape(text: str) -> str:
    return text.replace("%", "%%")
