"""What a chat asks for besides its messages: tools, whether they must be called, the form of the answer."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from ...errors import InvalidRequestError
from ...grammar.tool_calls import Tool, read_tools
from ...sampling.params import CONSTRAINTS, SamplingParams
from .conversation import Conversation
from .render import ChatPrompt, ChatRenderer
from .reply import ReplyReader


@dataclass(frozen=True)
class ChatOptions:
    """Checked ``tools``, ``tool_choice`` and ``response_format``.

    Attributes:
        tools: those the model is told of, and whose calls are found.
        must_call: the reply consists of calls and nothing else.
        answer_schema: JSON schema of the answer, None for free text.
    """

    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    answer_schema: dict[str, Any] | None = None

    @classmethod
    def read(
        cls, tools: object = None, tool_choice: object = None, response_format: object = None
    ) -> ChatOptions:
        """Check the three as the OpenAI API writes them; raises InvalidRequestError.

        ``tools`` is a list of :class:`~rootlet.Tool` or dictionaries. ``tool_choice``: ``"auto"`` (the
        default with tools), ``"none"`` hides the tools, ``"required"`` forces calls, and
        ``{"type": "function", "function": {"name": ...}}`` forces calls of that tool, the only one shown.
        ``response_format``: ``{"type": "text" | "json_object"}``, or ``{"type": "json_schema", "json_schema":
        {"schema": ...}}``.
        """
        known = () if tools is None else read_tools(tools)
        schema = _answer_schema(response_format)
        choice = ("auto" if known else "none") if tool_choice is None else tool_choice
        if choice == "none":
            return cls(answer_schema=schema)
        if not known:
            raise InvalidRequestError(f"tool_choice={choice!r} needs tools, and there are none.")
        if choice == "auto":
            return cls(known, answer_schema=schema)
        if choice != "required":
            known = (_named(choice, known),)
        if schema is not None:
            raise InvalidRequestError(
                f"tool_choice={choice!r} makes the reply a tool call, response_format makes it JSON: leave"
                " one of them out."
            )
        return cls(known, must_call=True)

    def prepare(
        self, renderer: ChatRenderer, conversation: Conversation, params: SamplingParams
    ) -> tuple[ChatPrompt, SamplingParams]:
        """The prompt of ``conversation``, and ``params`` with what the template and these options add.

        Raises InvalidRequestError as :meth:`ChatRenderer.render`, if the model has no known way to write tool
        calls, or if ``params`` are constrained already.
        """
        if self.tools and renderer.tool_format is None:
            raise InvalidRequestError(
                "tools: how this model writes tool calls is not known from its chat template. Set the engine"
                " option tool_call_parser, or leave the tools out."
            )
        prompt = renderer.encode(conversation, self.tools)
        params = prompt.add_stop(params)
        constraint = self._constraint(renderer, prompt)
        if constraint:
            self._check_free(params)
        if self.tools:  # what calls begin with may be a special token
            constraint["skip_special_tokens"] = False
        return prompt, dataclasses.replace(params, **constraint) if constraint else params

    def reader(self, renderer: ChatRenderer, prompt: ChatPrompt) -> ReplyReader:
        """A reader for one reply to ``prompt``."""
        return ReplyReader(
            renderer.tool_format if self.tools else None,
            [tool.function.name for tool in self.tools],
            renderer.reasoning,
            in_reasoning=prompt.in_reasoning,
        )

    def _constraint(self, renderer: ChatRenderer, prompt: ChatPrompt) -> dict[str, Any]:
        """The constraint of the reply, as sampling parameters."""
        if self.must_call:
            assert renderer.tool_format is not None
            answer = renderer.tool_format.write([tool.function for tool in self.tools])
        elif self.answer_schema is None:
            return {}
        elif renderer.reasoning is None:
            return {"json_schema": json.dumps(self.answer_schema)}
        else:
            answer = {"type": "json_schema", "json_schema": self.answer_schema}
        if renderer.reasoning is not None:
            answer = renderer.reasoning.write_before(answer, inside=prompt.in_reasoning)
        return {"structural_tag": json.dumps({"type": "structural_tag", "format": answer})}

    def _check_free(self, params: SamplingParams) -> None:
        for name in CONSTRAINTS:
            if getattr(params, name) is not None:
                field = "tool_choice" if self.must_call else "response_format"
                raise InvalidRequestError(
                    f"{field} constrains the reply, and so does sampling_params[{name!r}]: leave one of them"
                    " out."
                )


def _named(choice: object, tools: tuple[Tool, ...]) -> Tool:
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or choice.get("type", "function") != "function":
        raise InvalidRequestError(
            "tool_choice must be 'auto', 'none', 'required' or"
            f' {{"type": "function", "function": {{"name": ...}}}}, got {choice!r}.'
        )
    for tool in tools:
        if tool.function.name == name:
            return tool
    names = ", ".join(tool.function.name for tool in tools)
    raise InvalidRequestError(f"tool_choice names {name!r}, which is not among the tools: {names}.")


def _answer_schema(value: object) -> dict[str, Any] | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise InvalidRequestError(
            "response_format.type must be 'text', 'json_object' or 'json_schema', got"
            f" {value if kind is None else kind!r}."
        )
    schema = value.get("json_schema")
    schema = schema.get("schema") if isinstance(schema, dict) else None
    if not isinstance(schema, dict):
        raise InvalidRequestError(
            f"response_format.json_schema.schema must be an object (a JSON schema), got {schema!r}."
        )
    return schema
