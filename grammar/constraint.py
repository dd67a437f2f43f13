"""What a request asks its output to be, and the rules that describe it."""

from __future__ import annotations

import json
from typing import NamedTuple

from .budget import Budget, shortened
from .ebnf import parse_ebnf
from .json_schema import compile_schema
from .regex import parse
from .structural_tag import compile_structural_tag
from .tree import Lexeme, Rules, Words

ANY_JSON = "$$ANY$$"
"""As ``json_schema``: any JSON document."""


class Constraint(NamedTuple):
    """A kind (``json_schema``, ``regex``, ``ebnf``, ``structural_tag``, ``choice``) and its text."""

    kind: str
    text: str

    def rules(self, budget: Budget | None = None) -> Rules:
        """The language as rules, all that is not supported refused. Raises GrammarError."""
        budget = budget or Budget()
        budget.spend(len(self.text) // 64, f"the text of {self.kind}", len(self.text))
        if self.kind == "json_schema":
            return compile_schema("true" if self.text == ANY_JSON else self.text, budget)
        if self.kind == "ebnf":
            return parse_ebnf(self.text, budget)
        if self.kind == "structural_tag":
            return compile_structural_tag(self.text, budget)
        if self.kind == "regex":
            return self._one(Lexeme(parse(self.text, budget)), budget)
        return self._one(Lexeme(Words(tuple(dict.fromkeys(json.loads(self.text))))), budget)

    def _one(self, word: Lexeme, budget: Budget) -> Rules:
        """The rules of a single word."""
        budget.locate(word, f"the {self.kind} {shortened(self.text)}")
        return {"root": word}
