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
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from types import BuiltinMethodType
from typing import Any, Final

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, _PassArg

from .bounds import CHECKED, Budget, measure

MAX_STEPS: Final = 1_000_000
MAX_SIZE: Final = 2**22  # as measured in bounds
_MAX_TEMPLATE: Final = 2**18  # characters, seconds to compile; the longest known have 30,000
_CALL: Final = 10  # steps
_NODES_PER_STEP: Final = 32
_REPEATED: Final = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)  # they have a body
# Filters that look at no more of a value than they return, and tests that compare all of it.
_SPARING: Final = frozenset(
    ("attr", "count", "d", "default", "first", "items", "join", "last", "length", "list", "string", "tojson")
)
_SEARCHING: Final = frozenset(
    ("in", "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan")
    + ("<=", "le", "lower", "upper", "sameas")
)
_OF_DICTS: Final = frozenset(dir(dict))


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
    budget = Budget(MAX_STEPS + given, MAX_SIZE + 4 * given)
    try:
        program = _compile(template)
        return budget.collect(_run(program, _Context.of(program, variables, budget)))
    except RecursionError as error:
        raise TemplateError("the chat template calls itself without end or is nested too deeply") from error


@functools.lru_cache(maxsize=32)
def _compile(template: str) -> Template:
    """``template`` as a program, which any number of threads may run: what changes is in the context."""
    return _environment().from_string(template)


@functools.cache
def _environment() -> _Environment:
    return _Environment()


def _run(program: Template, context: _Context) -> Iterator[str]:
    """As ``program.generate``, which makes a context of its own."""
    try:
        yield from program.root_render_func(context)
    except Exception:
        program.environment.handle_exception()  # raises it, with the lines of the template


class _Context(Context):
    """The variables of one rendering and its budget: Jinja hands it to all that is counted."""

    budget: Budget

    @classmethod
    def of(cls, program: Template, variables: Mapping[str, Any], budget: Budget) -> _Context:
        environment = program.environment
        context = cls(environment, {**environment.globals, **variables}, program.name, program.blocks)
        context.budget = budget
        return context

    def derived(self, locals: dict[str, Any] | None = None) -> _Context:
        """That of a block, which spends what the others spend."""
        context = super().derived(locals)
        assert isinstance(context, _Context)  # the environment's context_class
        context.budget = self.budget
        return context


_PASSED: Final[Mapping[_PassArg | None, Callable[[Context], Any] | None]] = {
    None: None,
    _PassArg.context: lambda context: context,
    _PassArg.eval_context: lambda context: context.eval_ctx,
    _PassArg.environment: lambda context: context.environment,
}


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's words for training; here they are just there."""

    tags = frozenset(("generation",))  # type: ignore[assignment]  # Jinja says set, and only looks into it

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox that counts, in the budget of the context that it is given."""

    context_class = _Context
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_dict)
        del self.globals["lipsum"]
        self.filters["tojson"] = _tojson
        filters: Mapping[str, Any] = self.filters  # Jinja does not say that they can be called
        tests: Mapping[str, Any] = self.tests
        self.filters = {
            name: _guarded(name, function, name not in _SPARING) for name, function in filters.items()
        }
        self.tests = {name: _guarded(name, function, name in _SEARCHING) for name, function in tests.items()}
        self.filters |= {"_each": _each, "_made": _made, "_searched": _searched, "_spent": _spent}
        self._open = self._find_open()

    def _find_open(self) -> dict[type, frozenset[str]]:
        """The attributes that the sandbox lets through for every object of these types, as it answers once.

        That saves its many questions at each access. ``format`` is not among them: the sandbox replaces it.
        """
        samples: tuple[object, ...] = ("", {}, [], LoopContext((), Undefined))
        return {
            type(one): frozenset(
                name
                for name in dir(one)
                if name not in ("format", "format_map", "previtem", "nextitem")
                and self.is_safe_attribute(one, name, None)
            )
            for one in samples
        }

    # what Jinja asks

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            if loop.recursive:
                raise TemplateError("recursive loops are not supported in chat templates")
            loop.iter = self._through("_each", loop.iter)
        self._weigh(tree)
        for parent in [tree, *tree.find_all(nodes.Node)]:
            for field, value in list(parent.iter_fields()):
                if isinstance(value, list):
                    setattr(parent, field, [self._watched(item) for item in value])
                else:
                    setattr(parent, field, self._watched(value))
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox's, without its questions where the answer is known."""
        kind = type(obj)
        if attribute in self._open.get(kind, ()):
            return getattr(obj, attribute)
        if kind is dict and attribute not in _OF_DICTS:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if kind is Namespace and not attribute.startswith("_"):
            value = getattr(obj, attribute, None)
            if type(value) in (str, bool, int, list, dict):
                return value
        return super().getattr(obj, attribute)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls; the names leave room for any keyword."""
        budget = __context.budget
        kwargs.pop("_loop_vars", None)  # for functions that ask for the context: there are none
        kwargs.pop("_block_vars", None)
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        subject = (owner,) if isinstance(owner, (str, bytes, int)) else ()
        name = getattr(__obj, "__name__", "")
        if type(owner) is str or type(owner) is list:
            budget.pay(owner)  # methods go through it, whatever they return
        if (args or kwargs or name in CHECKED) and __obj is not __self.globals["range"]:
            args = budget.check(name, args, kwargs, subject)
        if type(__obj) is BuiltinMethodType and type(owner) in __self._open:
            made = __obj(*args, **kwargs)
        else:
            made = super().call(__context, __obj, *args, **kwargs)
        return budget.pay(made, _CALL)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """``left operator right``, if the result can be of a bearable size."""
        if operator == "+":  # at most twice the size of what there is
            return context.budget.pay(left + right)
        context.budget.check_binop(operator, left, right)
        return context.budget.pay(self.binop_table[operator](left, right))

    # the tree of a template

    def _watched(self, node: Any) -> Any:
        """Values that are put together: joined texts, literals, slices, operands of comparisons."""
        literal = isinstance(node, (nodes.List, nodes.Tuple)) and getattr(node, "ctx", "load") == "load"
        copy = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        if isinstance(node, (nodes.Concat, nodes.Dict)) or copy or (literal and node.items):
            return self._through("_made", node)
        if isinstance(node, nodes.Operand) and node.op in ("in", "notin"):
            node.expr = self._through("_searched", node.expr)
        elif isinstance(node, (nodes.Compare, nodes.Operand)) and not isinstance(node.expr, nodes.Const):
            node.expr = self._through("_made", node.expr)
        return node

    def _weigh(self, node: Any) -> int:
        """The number of nodes in ``node``; each run of a long body is made to cost what is written in it."""
        weight = 1
        for child in node.iter_child_nodes():
            weight += self._weigh(child)
        if isinstance(node, _REPEATED) and weight >= _NODES_PER_STEP:
            steps = nodes.Const(weight // _NODES_PER_STEP).set_lineno(node.lineno)
            paid = nodes.ExprStmt(self._through("_spent", steps)).set_lineno(node.lineno)
            node.body = [paid, *node.body]
        return weight

    def _through(self, name: str, node: nodes.Node) -> nodes.Filter:
        passed = nodes.Filter(node, name, [], [], None, None)
        passed.set_lineno(node.lineno).set_environment(self)
        return passed


@pass_context  # so that Jinja does not fold it
def _each(context: Any, values: Any) -> Iterator[Any]:
    return context.budget.each(values)


@pass_context
def _made(context: Any, value: Any) -> Any:
    return context.budget.pay(value)


@pass_context
def _spent(context: Any, steps: int) -> None:
    context.budget.spend(steps)


@pass_context
def _searched(context: Any, value: Any) -> Any:
    """What ``in`` looks through; a mapping is not, it answers at once."""
    context.budget.pay(None if type(value) is dict else value)
    return value


def _guarded(name: str, function: Callable[..., Any], is_searching: bool) -> Callable[..., Any]:
    """A filter or test, bounded: it asks for the context, and gives ``function`` what that asks for.

    ``is_searching``: it goes through what it is given, and may return little.
    """
    passed = _PASSED[_PassArg.from_obj(function)]
    is_checked = name in CHECKED

    @functools.wraps(function)
    def guarded(context: Any, *args: Any, **kwargs: Any) -> Any:
        budget = context.budget
        if is_checked or kwargs or len(args) > 1:
            args = budget.check(name, args, kwargs)
        if is_searching:
            for value in (*args, *kwargs.values()):
                budget.pay(value, 0)
        if passed is not None:
            args = (passed(context), *args)
        return budget.pay(function(*args, **kwargs), _CALL)

    return pass_context(guarded)


def _dict(*given: Any, **items: Any) -> dict[Any, Any]:
    """The function alone: the methods of the class would change what the host gave."""
    return dict(*given, **items)


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
