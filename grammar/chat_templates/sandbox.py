"""Rendering chat templates, which are programs of strangers: in Jinja's sandbox, and within bounds.

Jinja's sandbox keeps a template from the host's objects, not from its time and memory. So loops, calls and
what they make are counted: a template gets a number of steps, and no value it makes may be larger than what
fits into a prompt. The bounds grow with the messages.

The names that templates find (``raise_exception``, ``strftime_now``, ``tojson``, ``generation`` blocks) are
those of transformers, whose ``apply_chat_template`` this stands in for.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from types import CodeType
from typing import Any, Final

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_STEPS: Final = 1_000_000
MAX_SIZE: Final = 2**22  # as measured below
_MAX_TEMPLATE: Final = 2**20  # characters; the longest known have 30,000
_MAX_NUMBER: Final = 10_000  # of an argument: widths, counts, indents
_MADE_PER_STEP: Final = 32
_CALL: Final = 10  # steps
_VALUE: Final = 8

_TOO_LARGE: Final = "the chat template makes something larger than %d characters"

_GROWING: Final = ("join", "indent", "wordwrap", "translate", "expandtabs", "tojson")
_FORMATS: Final = ("format", "format_map", "%")
_WIDE: Final = re.compile(r"\d{5}|%[^a-z]*\*")


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """The text that the chat template of ``tokenizer`` makes of ``messages``.

    Raises Jinja's TemplateError for a template that is wrong, refuses the messages or goes out of bounds, and
    whatever else templates raise. A tokenizer with an ``apply_chat_template`` of its own is asked itself.
    """
    from transformers import PreTrainedTokenizerBase

    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        return tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    return render(
        tokenizer.get_chat_template(tools=tools),
        messages=messages,
        tools=tools,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **tokenizer.special_tokens_map,
    )


def render(template: str, **variables: Any) -> str:
    """The text that ``template`` makes of ``variables``; raises as :func:`render_chat`."""
    if len(template) > _MAX_TEMPLATE:
        raise TemplateError(f"a chat template of {len(template)} characters, above {_MAX_TEMPLATE}")
    given = measure(variables, None)
    bounded = _Environment(MAX_STEPS + given, MAX_SIZE + 4 * given)
    try:
        program = bounded.template_class.from_code(bounded, _compile(template), bounded.make_globals(None))
        return bounded.collect(program.generate(**variables))
    except RecursionError as error:
        raise TemplateError("the chat template calls itself without end or is nested too deeply") from error


@functools.lru_cache(maxsize=32)
def _compile(template: str) -> CodeType:
    """Jinja folds constants while it compiles, so that is bounded as well."""
    return _Environment(MAX_STEPS, MAX_SIZE).compile(template)


def measure(value: Any, limit: int | None) -> int:
    """Size of ``value``: its characters and eight for each value, those inside it each time they occur.

    Raises TemplateError above ``limit``.
    """
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        total += _VALUE
        if isinstance(item, (str, bytes)):
            total += len(item)
        elif isinstance(item, int):
            total += item.bit_length() // 8
        elif isinstance(item, range):
            total += _VALUE * len(item)
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting.extend(item)
        elif isinstance(item, Mapping):
            waiting.extend(item)
            waiting.extend(item.values())
        elif isinstance(item, Namespace):
            waiting.append(item._Namespace__attrs)
        if limit is not None and total + _VALUE * len(waiting) > limit:
            raise TemplateError(_TOO_LARGE % limit)
    return total


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's words for training; here they are just there."""

    tags = frozenset(("generation",))

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Guarded(dict):
    """Filters or tests by name, each with its guard when it is asked for; ``own`` ones have none."""

    def __init__(self, table: Mapping[str, Any], guard: Callable[[str, Any], Any]) -> None:
        super().__init__(table)
        self.own: dict[str, Any] = {}
        self._guard = guard

    def __getitem__(self, name: str) -> Any:
        return self.own.get(name) or self._guard(name, super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self or name in self.own else default


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox for one rendering, or one compilation, that counts."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, steps: int, size: int) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        self._steps = steps
        self._size = size
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        del self.globals["lipsum"]
        self.filters["tojson"] = _tojson
        self.filters = _Guarded(self.filters, self._guarded)
        self.tests = _Guarded(self.tests, self._guarded)
        self.filters.own |= {"_each": self._each, "_made": self._made}

    def collect(self, pieces: Iterator[str]) -> str:
        """All ``pieces``, as long as they are not too many or too long."""
        text, length = [], 0
        for piece in pieces:
            length += len(piece)
            if length > self._size:
                raise TemplateError(f"the chat template writes more than {self._size} characters")
            text.append(piece)
        return "".join(text)

    # what Jinja asks

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            if loop.recursive:
                raise TemplateError("recursive loops are not supported in chat templates")
            loop.iter = self._through("_each", loop.iter)
        for parent in [tree, *tree.find_all(nodes.Node)]:
            for field, value in list(parent.iter_fields()):
                if isinstance(value, list):
                    setattr(parent, field, [self._watched(item) for item in value])
                else:
                    setattr(parent, field, self._watched(value))
        return tree

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls; the names leave room for any keyword."""
        __self._spend(_CALL)
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        subject = (owner,) if isinstance(owner, (str, bytes, int)) else ()
        name = getattr(__obj, "__name__", "")
        if __obj is not __self.globals["range"]:
            args = __self._check(name, args, kwargs, subject)
        return __self._made(__context, super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """``left operator right``, if the result can be of a bearable size."""
        if operator == "%":
            self._check("%", right if isinstance(right, tuple) else (right,), {}, (left,))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._fits(left.bit_length() * max(right, 0) // 8)
        elif operator == "*":
            for value, count in ((left, right), (right, left)):
                if isinstance(count, int):
                    self._fits(measure(value, self._size) * (count if not isinstance(value, int) else 1))
        return self._made(context, super().call_binop(context, operator, left, right))

    # bounds

    def _spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise TemplateError("the chat template takes too many steps")

    def _fits(self, size: int) -> None:
        if size > self._size:
            raise TemplateError(_TOO_LARGE % self._size)

    @pass_context  # so that Jinja does not fold it
    def _each(self, context: Any, values: Any) -> Iterator[Any]:  # noqa: ARG002
        for value in values:
            self._spend(1)
            yield value

    @pass_context
    def _made(self, context: Any, value: Any) -> Any:  # noqa: ARG002
        self._spend(1 + measure(value, self._size) // _MADE_PER_STEP)
        return value

    def _check(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], subject: Sequence[Any] = ()
    ) -> Sequence[Any]:
        """Raise TemplateError for a function of texts that would make something huge of ``args``.

        ``subject`` is what a method belongs to. Returns ``args``, with lists in place of the iterators that
        had to be measured.
        """
        if name in _GROWING:
            args = [list(value) if isinstance(value, Iterator) else value for value in args]
        values = (*subject, *args, *kwargs.values())
        numbers = [abs(value) for value in values if isinstance(value, (int, float))]
        if max(numbers, default=0) > _MAX_NUMBER and len(values) > 1:
            raise TemplateError(f"the chat template calls {name} with a number above {_MAX_NUMBER}")
        texts = [value for value in values if isinstance(value, str)]
        if name in _FORMATS and any(_WIDE.search(text) for text in texts):
            raise TemplateError("the chat template formats with a width of its own that is too large")
        if name == "replace" and len(texts) >= 3:
            text, old, new = texts[:3]
            self._fits(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
        elif name in _GROWING:
            sizes = sorted((measure(value, self._size) for value in values), reverse=True)
            factor = max([1, *numbers, *sizes[1:2]])
            self._fits(int(sizes[0] * factor) if sizes else 0)
        return args

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or test, bounded; wraps keeps Jinja's marks on it."""
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self._spend(_CALL)
            rest = self._check(name, args[skip:], kwargs)
            return self._made(None, function(*args[:skip], *rest, **kwargs))

        return guarded

    # the tree of a template

    def _watched(self, node: Any) -> Any:
        """Values that are put together: joined texts, literals, slices, operands of comparisons."""
        literal = isinstance(node, (nodes.List, nodes.Tuple)) and getattr(node, "ctx", "load") == "load"
        copy = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        if isinstance(node, (nodes.Concat, nodes.Dict)) or copy or (literal and node.items):
            return self._through("_made", node)
        if isinstance(node, (nodes.Compare, nodes.Operand)) and not isinstance(node.expr, nodes.Const):
            node.expr = self._through("_made", node.expr)
        return node

    def _through(self, name: str, node: nodes.Expr) -> nodes.Filter:
        passed = nodes.Filter(node, name, [], [], None, None)
        return passed.set_lineno(node.lineno).set_environment(self)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
