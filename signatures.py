"""Calls with argument names that nobody knows: an error with a suggestion instead of Python's bare one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from .errors import unknown_option

P = ParamSpec("P")
R = TypeVar("R")


def suggest_names(
    kind: str = "argument", misplaced: Mapping[str, str] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: unknown keyword arguments raise UnknownOptionError, which is a TypeError too.

    The function's signature stays what it was, for readers, checkers and ``help()``. ``kind`` says what the
    names are; ``misplaced`` where those belong that are known, but elsewhere.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters.values()
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

        return call

    return decorate
