"""What the engine option ``chat_template`` may be: a built-in name, a JSON or Jinja file, or Jinja text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...errors import ConfigError
from .builtin import BUILT_IN
from .conversation import ConversationTemplate

_REQUIRED: Final = ("name", "system", "user", "assistant", "sep_style", "stop_str")
_OPTIONAL: Final = ("system_message", "sep", "sep2")


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template as Jinja text, and the ``conversation`` template it was made from, if it was."""

    jinja: str
    conversation: ConversationTemplate | None = None


def read_chat_template(chat_template: str | Path) -> ChatTemplate:
    """Read the option ``chat_template``.

    It is one of

    * the name of a built-in template (:data:`~rootlet.grammar.chat_templates.builtin.BUILT_IN`);
    * the path of a ``.json`` file: an object with the texts ``name``, ``system``, ``user``, ``assistant``,
      ``sep_style`` (a key of :data:`~rootlet.grammar.chat_templates.styles.STYLES`) and ``stop_str`` (a text
      or a list of texts); ``system_message`` (default empty), ``sep`` (default a line end) and ``sep2``
      (default ``sep``) may be left out. The system message stands on the line after ``system``;
    * the path of a ``.jinja`` file, whose text is stripped of newlines at both ends and in which a backslash
      followed by n stands for a newline;
    * Jinja text itself, recognised by ``{%`` or ``{{``.

    Raises ConfigError for anything else or a file that cannot be read.
    """
    name = str(chat_template)
    if name in BUILT_IN:
        return _compiled(BUILT_IN[name])
    if isinstance(chat_template, str) and ("{%" in name or "{{" in name):
        return ChatTemplate(name)
    file = Path(chat_template).expanduser()
    if file.suffix == ".jinja":
        return ChatTemplate(_read(file).strip("\n").replace("\\n", "\n"))
    if file.suffix == ".json":
        return _compiled(_parse_json(file))
    raise ConfigError(
        f"chat_template {name!r} is neither the name of a built-in template ({', '.join(BUILT_IN)}), nor the "
        "path of a .jinja or .json file, nor Jinja text (with '{%' or '{{')."
    )


def _compiled(template: ConversationTemplate) -> ChatTemplate:
    return ChatTemplate(template.to_jinja(), template)


def _read(file: Path) -> str:
    if file.exists() and not file.is_file():
        raise ConfigError(f"chat_template {str(file)!r} is not a regular file.")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template {str(file)!r} cannot be read: {error}.") from error


def _parse_json(file: Path) -> ConversationTemplate:
    try:
        values = json.loads(_read(file))
    except ValueError as error:
        raise ConfigError(f"chat_template {str(file)!r} is not JSON: {error}.") from error
    problem = _find_problem(values)
    if problem:
        raise ConfigError(f"chat_template {str(file)!r}: {problem}")
    stop = values["stop_str"]
    return ConversationTemplate(
        name=values["name"],
        style=values["sep_style"],
        system=(values["system"] + "\n", ""),
        system_message=values.get("system_message", ""),
        user=values["user"],
        assistant=values["assistant"],
        sep=values.get("sep", "\n"),
        sep2=values.get("sep2"),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )


def _find_problem(values: Any) -> str | None:
    """What is wrong with the content of a JSON template, None if nothing is."""
    if not isinstance(values, dict):
        return f"it must hold a JSON object, got {type(values).__name__}."
    for name in _REQUIRED:
        if name not in values:
            return f"the key {name!r} is missing; required are {', '.join(_REQUIRED)}."
    for name, value in values.items():
        if name not in (*_REQUIRED, *_OPTIONAL):
            return f"unknown key {name!r}; there are {', '.join((*_REQUIRED, *_OPTIONAL))}."
        if name == "stop_str":
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
                return f"stop_str must be a text or a list of texts, none of them empty, got {value!r}."
        elif not isinstance(value, str):
            return f"{name} must be a text, got {value!r}."
    return None
