"""What the readers of objects and lists may ask of the walk through a schema, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

from ...errors import GrammarError
from ..budget import Budget
from ..tree import Node
from .kinds import NoValue
from .options import Judge

_MAX_ITEMS = 10_000


class Context(Protocol):
    """The walk through a schema."""

    budget: Budget

    @property
    def judge(self) -> Judge:
        """Tells whether values meet options."""

    def node(self, schema: Any, path: str) -> Node:
        """The rules of a schema below."""

    def options(self, schema: Any, path: str) -> list[dict]:
        """What a value of a schema below must be one of."""

    def strings(self, option: dict) -> Node:
        """The strings of an option. Raises NoValue if there are none."""

    def share(self, node: Node) -> Node:
        """A rule for a large node that is used several times."""

    def rules(self, path: str) -> Callable[[Hashable, Callable[[], Node]], Node]:
        """Makes rules by name, which may lead back to themselves."""


def sizes(option: dict, of: str) -> tuple[int, int | None]:
    """The bounds ``min...`` and ``max...``; above 10,000, nobody is given more than that.

    Raises GrammarError where more are needed, NoValue where one bound excludes the other.
    """
    least = int(option.get(f"min{of}", 0))
    most = int(option[f"max{of}"]) if f"max{of}" in option else None
    if least > _MAX_ITEMS:
        raise GrammarError(f"min{of} above {_MAX_ITEMS} is not supported")
    if most is not None and least > most:
        raise NoValue(f"min{of} {least} is above max{of} {most}")
    return least, most if most is None else min(most, _MAX_ITEMS)
