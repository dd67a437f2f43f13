"""Separator styles: how a conversation template's texts are put around what is said.

A style is a row of a table. Its texts are format strings: ``{role}`` is the text of the speaker's role,
``{sep}`` and ``{sep2}`` are the template's separators (the first stands in for a missing second), and
``{prefix}`` is the second one, or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class When(Enum):
    """When the system part is written at all; its message may be empty."""

    ALWAYS = "always"
    UNLESS_ALL_EMPTY = "unless the system template and the message are empty"
    WITH_MESSAGE = "only with a message that is not empty"


@dataclass(frozen=True)
class Style:
    """How one separator style writes a conversation.

    ``user`` and ``assistant`` stand in front of what is said, ``user_end`` and ``assistant_end`` behind it;
    ``reply`` is what the reply is asked for with: ``assistant``, often without its last space, since models
    begin with that themselves. ``system_end`` stands behind the system part, ``without_system`` in its place.
    ``first_user`` replaces ``user`` and ``user_end`` at the beginning of a conversation.

    ``counts_rounds``: a numbered line goes in front of every user message. ``filter`` is a Jinja filter for
    what is said.
    """

    user: str
    user_end: str
    assistant: str
    assistant_end: str
    reply: str
    system_end: str = ""
    when: When = When.ALWAYS
    without_system: str = ""
    first_user: tuple[str, str] | None = None
    counts_rounds: bool = False
    filter: str = ""


def _alike(turn: str, end: str, reply: str, system_end: str = "", when: When = When.ALWAYS) -> Style:
    """A style that treats both roles alike."""
    return Style(turn, end, turn, end, reply, system_end, when)


_HEADER = "<|start_header_id|>{role}<|end_header_id|>\n\n"

STYLES: Final[dict[str, Style]] = {
    "ADD_COLON_SINGLE": _alike("{role}: ", "{sep}", "{role}:", "{sep}"),
    "ADD_COLON_TWO": Style("{role}: ", "{sep}", "{role}: ", "{sep2}", "{role}:", "{sep}"),
    "ADD_COLON_SPACE_SINGLE": _alike("{role}: ", "{sep}", "{role}: ", "{sep}"),
    "NO_COLON_SINGLE": _alike("{role}", "{sep}", "{role}"),
    "NO_COLON_TWO": Style("{role}", "{sep}", "{role}", "{sep2}", "{role}"),
    "ADD_NEW_LINE_SINGLE": _alike("{role}\n", "{sep}", "{role}\n", "{sep}", When.UNLESS_ALL_EMPTY),
    # the system part opens the first user message
    "LLAMA2": Style(
        *("{role} ", "{sep}", "{role} ", "{sep2}", "{role}"),
        when=When.WITH_MESSAGE,
        without_system="[INST] ",
        first_user=("", " "),
    ),
    "LLAMA3": Style(
        *(_HEADER, "<|eot_id|>", _HEADER, "<|eot_id|>", _HEADER), when=When.WITH_MESSAGE, filter="trim"
    ),
    "CHATGLM": Style(
        *("{role}：", "{sep}", "{role}：", "{sep}", "{role}：", "{sep}", When.UNLESS_ALL_EMPTY),
        counts_rounds=True,
    ),
    "CHATML": _alike("{role}\n", "{sep}\n", "{role}\n", "{sep}\n", When.UNLESS_ALL_EMPTY),
    "CHATINTERN": Style("<s>{role}:", "{sep}\n", "{role}:", "{sep2}\n", "{role}:"),
    "DOLLY": Style("{role}:\n", "{sep}", "{role}:\n", "{sep2}\n\n", "{role}:\n"),
    "RWKV": Style(
        *("{role}: ", "\n\n", "{role}: ", "\n\n", "{role}:"),
        # blank lines end a message
        filter=r"replace('\r\n', '\n') | replace('\n\n', '\n')",
    ),
    "PHOENIX": _alike("{role}: <s>", "</s>", "{role}: <s>"),
    "ROBIN": _alike("{role}:\n", "{sep}", "{role}:\n", "{sep}"),
    "FALCON_CHAT": _alike("{role}: ", "{sep}", "{role}:", "{sep}", When.WITH_MESSAGE),
    "CHATGLM3": _alike("{role}\n", "", "{role}", "", When.WITH_MESSAGE),
    "DEEPSEEK_CHAT": Style("{role}: ", "{sep}", "{role}: ", "{sep2}", "{role}:"),
    # the second separator is a beginning given to every reply
    "METAMATH": Style(
        *("{role}:\n", "{sep}", "{role}: {prefix}", "", "{role}: {prefix}", "{sep}", When.UNLESS_ALL_EMPTY),
    ),
}
