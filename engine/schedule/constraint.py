"""The constraint of one request while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...grammar.interface import Grammar, Matcher


@dataclass(eq=False, slots=True)
class RequestConstraint:
    """A compiled grammar, and where a request's committed output stands in it.

    ``is_lifted``: the request has ended, so nothing that is still drawn for it needs to be allowed.
    """

    grammar: Grammar
    is_lifted: bool = False
    _matcher: Matcher | None = None

    @property
    def matcher(self) -> Matcher:
        """Stands behind the committed output.

        Made when first asked for, which is while the device computes the prompt: nobody waits for it.
        """
        if self._matcher is None:
            self._matcher = self.grammar.matcher()
        return self._matcher
