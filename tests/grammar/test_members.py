"""The trees of objects and of integers against plain definitions of the same languages."""

import itertools
import json
import re

import pytest

from rootlet.grammar.constraint import Constraint
from rootlet.grammar.json_schema.numbers import integers
from rootlet.grammar.json_schema.objects import members
from rootlet.grammar.json_schema.tokens import constant, member_name
from rootlet.grammar.notation import as_ebnf, as_regex
from rootlet.grammar.tree import Choice, Repeat, Rule, Sequence, sequence

ONE = constant(1)


def expanded(node, rules) -> str:
    """A tree whose rules do not lead back to themselves as a regular expression."""
    if isinstance(node, Rule):
        return expanded(rules[node.name], rules)
    if isinstance(node, Sequence):
        return "".join(expanded(item, rules) for item in node.items)
    if isinstance(node, Choice):
        return f"(?:{'|'.join(expanded(option, rules) for option in node.options)})"
    if isinstance(node, Repeat):
        most = "" if node.most is None else node.most
        return f"(?:{expanded(node.item, rules)}){{{node.least},{most}}}"
    return as_regex(node)


@pytest.mark.parametrize("required", ["", "a", "d", "h", "ad", "bcdefgh", "abcdefg", "abcdefgh"])
@pytest.mark.parametrize("extra", [None, sequence(member_name("z"), ONE)])
@pytest.mark.parametrize("names", ["a", "abcd", "abcdefgh"])
def test_members_are_all_choices_of_names_in_their_order(names, extra, required):
    rules = {}

    def share(node):
        rules[f"r{len(rules)}"] = node
        return Rule(f"r{len(rules) - 1}")

    needed = set(required) & set(names)
    found = re.compile(expanded(members(dict.fromkeys(names, ONE), needed, extra, share), rules))
    for kept in itertools.product((True, False), repeat=len(names)):
        chosen = "".join(itertools.compress(names, kept))
        for more in ("", "z", "zz"):
            text = ", ".join(f'"{name}": 1' for name in chosen + more)
            expected = needed <= set(chosen) and (extra is not None or not more) and chosen + more != ""
            assert bool(found.fullmatch(text)) == expected, text
    assert not any(map(found.fullmatch, (', "a": 1', '"a": 1, ', '"a": 1"b": 1', '"b": 1, "a": 1')))


@pytest.mark.parametrize("low", [-101, -100, -11, -1, 0, 1, 2, 9, 10, 11, 99, 100, 101])
@pytest.mark.parametrize("high", [-2, 0, 1, 8, 9, 10, 98, 99, 100, 999, 1000, 1234])
def test_integers_within_bounds(low, high):
    if low <= high:
        found = re.compile(as_regex(integers(low, high)))
        assert [n for n in range(-1300, 1300) if found.fullmatch(str(n))] == list(range(low, high + 1))
        assert not any(map(found.fullmatch, ("", "-", "00", "01", "-0", "-01")))


def test_a_free_string_loops_in_a_single_state_where_names_are_excluded():
    names = [f"name_{i}" for i in range(20)]
    schema = {"properties": dict.fromkeys(names, True), "additionalProperties": {"type": "integer"}}
    text = as_ebnf(Constraint("json_schema", json.dumps({"type": "object"} | schema)).rules(None))
    loops = [
        line for line in text.splitlines() if re.match(r"(text_\d+_\d+) ::= (.* \| )?\[[^|]*\] \1 ", line)
    ]
    assert len(loops) == 2  # of the other names, and of the strings among any values
