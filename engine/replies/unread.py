"""Fields of an output that are made when somebody reads them, and cost nothing otherwise."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

UNREAD = "_unread"  # under which an output keeps its Source


class Source(Protocol):
    """Where the fields of an output come from that were not given to it."""

    def fill(self, fields: dict[str, Any], name: str) -> None:
        """Make field ``name``, and perhaps others, of an output with these fields. Any thread may call."""


class _MadeWhenRead:
    """Stands in the class for a field; what an instance has in its dictionary goes first."""

    def __init__(self, name: str, default: Any) -> None:
        self._name = name
        self._default = default

    def __get__(self, output: Any, owner: type | None = None) -> Any:
        if output is None:
            return self
        known = output.__dict__
        source: Source | None = known.get(UNREAD)
        if source is None and self._default is not MISSING:
            return self._default  # as of a dataclass
        if source is None:
            raise AttributeError(self._name)
        source.fill(known, self._name)
        return known[self._name]


def made_when_read(cls: type[T]) -> type[T]:
    """Decorates a dataclass: who has ``completion_tokens`` and a :class:`Source` may lack other fields."""
    for each in fields(cls):  # type: ignore[arg-type]  # a dataclass
        # after the dataclass was made, which would take what it finds here for a default
        setattr(cls, each.name, _MadeWhenRead(each.name, each.default))
    return cls
