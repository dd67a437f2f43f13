"""What a chat asks for besides its messages: tools, whether they must be called, the form of the answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import InvalidRequestError, short
from ...grammar.tool_calls import Tool, read_tools
from ...sampling.params import CONSTRAINTS, SamplingParams
from ..requests.arguments import CallFields
from .conversation import Conversation
from .render import ChatPrompt, ChatRenderer
from .reply import ReplyReader
from .response_format import read_response_format
from .tool_choice import read_tool_choice

if TYPE_CHECKING:
    from typing import TypeAlias

    Chat: TypeAlias = Sequence[Mapping[str, Any]]
    Messages: TypeAlias = Chat | Sequence[Chat]


class ChatFields(CallFields, total=False):
    """Arguments of ``chat`` by name; explained at :meth:`rootlet.Engine.chat`."""

    tools: Sequence[Tool | Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    response_format: Mapping[str, Any] | type | None
    return_logprob: bool
    top_logprobs_num: int | None


@dataclass(frozen=True)
class ChatOptions:
    """Checked ``tools``, ``tool_choice`` and ``response_format``.

    Attributes:
        tools: those the model is told of, and whose calls are found.
        must_call: the reply consists of calls and nothing else.
        one_call: of one call, then.
        answer_schema: JSON schema of the answer as a text, None for free text.
    """

    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    one_call: bool = False
    answer_schema: str | None = None

    @classmethod
    def read(
        cls,
        tools: object = None,
        tool_choice: object = None,
        response_format: object = None,
        parallel_tool_calls: object = None,
    ) -> ChatOptions:
        """Check them as the OpenAI API writes them.

        ``tools`` is a list of :class:`~rootlet.Tool` or dictionaries. ``tool_choice``: ``"auto"`` (the
        default with tools), ``"none"`` hides the tools, ``"required"`` forces calls, and the name of a tool,
        or ``{"type": "function", "function": {"name": ...}}``, forces calls of that tool, the only one shown.
        ``{"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required", "tools": [...]}}`` shows
        those tools only. ``parallel_tool_calls=False`` makes forced calls a single one; where the model may
        choose it cannot be kept and is refused.
        ``response_format``: ``{"type": "text" | "json_object"}``, ``{"type": "json_schema", "json_schema":
        {"schema": ...}}`` with all that the sampling parameter ``json_schema`` takes, or a Pydantic model.
        ``strict`` may be either: schemas are always kept to. ``name`` and ``description`` change nothing.

        Raises InvalidRequestError, or InvalidParameterError for what is no schema.
        """
        known = () if tools is None else read_tools(tools)
        schema = read_response_format(response_format)
        choice = read_tool_choice(tool_choice, known)
        may_be_many = _flag("parallel_tool_calls", parallel_tool_calls, default=True)
        if not choice.must_call:
            if choice.tools and not may_be_many:
                raise InvalidRequestError(
                    "parallel_tool_calls=False cannot be kept where the model may choose: leave it out, or"
                    " force the call by tool_choice."
                )
            _refuse_strict(choice.tools)
            return cls(choice.tools, answer_schema=schema)
        if schema is not None:
            raise InvalidRequestError(
                f"tool_choice={short(tool_choice)} makes the reply a tool call, response_format makes it"
                " JSON: leave one of them out."
            )
        return cls(choice.tools, must_call=True, one_call=not may_be_many)

    @classmethod
    def split(cls, fields: Mapping[str, Any]) -> tuple[ChatOptions, dict[str, Any]]:
        """The options among the arguments of ``chat``, checked, and the rest."""
        own = ("tools", "tool_choice", "response_format")
        others = {name: value for name, value in fields.items() if name not in own}
        return cls.read(*(fields.get(name) for name in own)), others

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
        try:
            constraint = self._constraint(renderer, prompt)
        except RecursionError:
            raise InvalidRequestError(
                "The schema of response_format, or of a tool, is nested too deeply."
            ) from None
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
            if self.one_call:
                answer = _only_first(answer)
        elif self.answer_schema is None:
            return {}
        elif renderer.reasoning is None:
            return {"json_schema": self.answer_schema}
        else:
            answer = {"type": "json_schema", "json_schema": _loaded(self.answer_schema)}
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


def _refuse_strict(tools: tuple[Tool, ...]) -> None:
    for tool in tools:
        if tool.function.strict:
            raise InvalidRequestError(
                f"Tool {tool.function.name!r}: strict is not supported where the model may choose: leave it"
                " out, or use tool_choice='required', which always keeps to the schema."
            )


def _only_first(answer: Any) -> Any:
    """A structural-tag format with the first of its calls only."""
    if isinstance(answer, list):
        return [_only_first(one) for one in answer]
    if not isinstance(answer, dict):
        return answer
    if answer.get("type") == "tags_with_separator":
        return answer | {"stop_after_first": True}
    return {name: _only_first(value) if name == "elements" else value for name, value in answer.items()}


def _loaded(schema: str) -> Any:
    try:
        return json.loads(schema)
    except ValueError as error:
        raise InvalidRequestError(f"The schema of response_format is not JSON: {error}.") from error


def _flag(name: str, value: object, *, default: bool) -> bool:
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be true or false, got {short(value)}.")
    return value
