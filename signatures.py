"""Calls with argument names that nobody knows: an error with a suggestion instead of Python's bare one."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

from .errors import unknown_option

P = ParamSpec("P")
R = TypeVar("R")


def suggest_names(
    kind: str = "argument", misplaced: Mapping[str, str] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: unknown keyword arguments raise UnknownOptionError, which is a TypeError too.

    The function's signature stays what it was, for readers, checkers and ``help()``; what it takes as
    ``**fields: Unpack[SomeTypedDict]`` is written out there. ``kind`` says what the names are; ``misplaced``
    where those belong that are known, but elsewhere.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = written_out(function)
        parameters = signature.parameters.values()
        known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        known = [name for name in known if name != "self"]

        def check(given: Mapping[str, Any]) -> None:
            for name in given:
                if name not in known:
                    raise unknown_option(kind, name, known, (misplaced or {}).get(name))

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call(*args: P.args, **kwargs: P.kwargs) -> Any:
                check(kwargs)
                return await function(*args, **kwargs)

        else:

            @functools.wraps(function)
            def call(*args: P.args, **kwargs: P.kwargs) -> Any:
                check(kwargs)
                return function(*args, **kwargs)

        call.__signature__ = signature  # type: ignore[attr-defined]
        return cast("Callable[P, R]", call)  # checkers lose that the coroutine of `async def` is the R there

    return decorate


def written_out(function: Callable[..., Any]) -> inspect.Signature:
    """The signature with the fields of ``**fields: Unpack[SomeTypedDict]`` (PEP 692) one by one.

    Which of them have defaults a TypedDict does not say: all of ours may be left out, shown as None.
    """
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    last = parameters[-1] if parameters else None
    packed = re.fullmatch(r"Unpack\[(\w+)\]", str(last.annotation)) if last is not None else None
    if last is None or last.kind is not last.VAR_KEYWORD or packed is None:
        return signature
    fields = function.__globals__[packed[1]].__annotations__
    named = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_shown(annotation))
        for name, annotation in fields.items()
    ]
    return signature.replace(parameters=[*parameters[:-1], *named])


def _shown(annotation: Any) -> Any:
    """An annotation as its author wrote it."""
    return getattr(annotation, "__forward_arg__", annotation)
