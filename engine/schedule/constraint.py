"""The constraint of one request while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...grammar.interface import Grammar, Matcher


@dataclass(eq=False, slots=True)
class RequestConstraint:
    """A compiled grammar, and where a request's committed output stands in it.

    Attributes:
        behind: output that the request began with.
        is_lifted: the request has ended, so nothing that is still drawn for it needs to be allowed.
        is_contradicted: that output breaks the grammar; known once there is a matcher.
    """

    grammar: Grammar
    behind: Sequence[int] = ()
    is_lifted: bool = False
    is_contradicted: bool = False
    _matcher: Matcher | None = None

    @property
    def matcher(self) -> Matcher:
        """Stands behind the committed output.

        Made when first asked for, which is while the device computes the prompt: nobody waits for it.
        """
        if self._matcher is None:
            matcher = self.grammar.matcher()
            self.is_contradicted = not all(map(matcher.accept, self.behind))
            self._matcher = matcher
        return self._matcher
