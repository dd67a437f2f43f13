"""A chat template given by its texts rather than as a program, and its translation to Jinja."""

from __future__ import annotations

from dataclasses import dataclass
from string import Template
from typing import Final

from ...errors import ConfigError
from .styles import STYLES, Style, When

# Jinja text; $names are Jinja expressions. The dashes keep the program's own line ends out of the result.
_PROGRAM: Final = Template("""\
{%- set turns = messages -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] -%}
    {%- set turns = messages[1:] -%}
    {%- if system is not string -%}
        {{- raise_exception('The content of a message must be one text.') -}}
    {%- endif -%}
    {{- $system ~ system ~ $system_end if system else $empty_system -}}
{%- else -%}
    {{- $default_system -}}
{%- endif -%}
{%- for message in turns -%}
    {%- set text = message['content'] -%}
    {%- if text is not string -%}
        {{- raise_exception('The content of a message must be one text.') -}}
    {%- elif message['role'] == 'user' -%}
        {{- $user ~ (text$filter) ~ $user_end -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- $assistant ~ (text$filter) ~ $assistant_end -}}
    {%- elif message['role'] == 'system' -%}
        {{- raise_exception('The system message must be the first message, and the only one.') -}}
    {%- else -%}
        {{- raise_exception('Unknown role: ' ~ message['role']) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- $reply -}}
{%- endif -%}
""")

_NUM_ROUNDS: Final = "turns[:loop.index0] | selectattr('role', 'equalto', 'user') | list | length"


@dataclass(frozen=True, kw_only=True)
class ConversationTemplate:
    """The texts around the messages of a conversation, and the style that says where they go.

    ``system`` are the texts in front of and behind the system message; ``system_message`` is the one of
    conversations that have none, and None leaves the system part out of those. ``user`` and ``assistant``
    are the texts of the roles. ``sep`` and ``sep2`` (default: ``sep``) end messages, as the ``style`` says (a
    key of :data:`~rootlet.grammar.chat_templates.styles.STYLES`). ``stop`` are strings that end a reply.

    The rendered text has no BOS token: the tokenizer adds its own, as to any text.

    Raises ConfigError for a style that does not exist.
    """

    name: str
    style: str
    user: str
    assistant: str
    system: tuple[str, str] = ("", "")
    system_message: str | None = ""
    sep: str = "\n"
    sep2: str | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ConfigError(
                f"Unknown separator style: {self.style!r} in chat template {self.name!r}. Use one of"
                f" {', '.join(STYLES)}."
            )

    @property
    def reply_gap(self) -> str:
        """What stands between the text that asks for a reply and the reply, when both are in the prompt."""
        style = STYLES[self.style]
        opening = self._fill(style.assistant, self.assistant)
        return opening.removeprefix(self._fill(style.reply, self.assistant))

    def to_jinja(self) -> str:
        """The same template as Jinja text for ``tokenizer.chat_template``.

        It raises Jinja's TemplateError for a role that is not system, user or assistant, for a system message
        that is not the first message and for content that is no string.
        """
        style = STYLES[self.style]
        return _PROGRAM.substitute(
            system=_literal(self.system[0]),
            system_end=_literal(self.system[1] + self._fill(style.system_end)),
            empty_system=_literal(self._system_part("")),
            default_system=_literal(self._system_part(self.system_message)),
            user=self._user_expression(style),
            user_end=_unless_first(style, 1, _literal(self._fill(style.user_end))),
            assistant=_literal(self._fill(style.assistant, self.assistant)),
            assistant_end=_literal(self._fill(style.assistant_end)),
            reply=_literal(self._fill(style.reply, self.assistant)),
            filter=f" | {style.filter}" if style.filter else "",
        )

    def _fill(self, text: str, role: str = "") -> str:
        sep2 = self.sep if self.sep2 is None else self.sep2
        return text.format(role=role, sep=self.sep, sep2=sep2, prefix=self.sep2 or "")

    def _system_part(self, message: str | None) -> str:
        style = STYLES[self.style]
        text = self.system[0] + (message or "") + self.system[1]
        missing = {When.ALWAYS: False, When.UNLESS_ALL_EMPTY: not text, When.WITH_MESSAGE: not message}
        if message is None or missing[style.when]:
            return style.without_system
        return text + self._fill(style.system_end)

    def _user_expression(self, style: Style) -> str:
        expression = _unless_first(style, 0, _literal(self._fill(style.user, self.user)))
        if style.counts_rounds:
            first = 1 if self.name == "chatglm2" else 0  # the two generations of the model count differently
            number = f"(({_NUM_ROUNDS}) + {first})"
            expression = f"'[Round ' ~ {number} ~ {_literal(']' + self.sep)} ~ {expression}"
        return expression


def _unless_first(style: Style, side: int, expression: str) -> str:
    """``expression``, or what the style has in its place (``side`` 0: front, 1: behind) at the beginning."""
    if style.first_user is None:
        return expression
    return f"({_literal(style.first_user[side])} if loop.first else {expression})"


def _literal(text: str) -> str:
    """``text`` as a string of Jinja, whose escapes are Python's."""
    return repr(text)
