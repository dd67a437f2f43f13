"""What strangers send is bounded: each constraint ends as a grammar within its budget, or refused by name."""

from __future__ import annotations

import itertools
import json
import resource
import threading

import pytest

from rootlet.errors import EngineClosedError, GrammarError
from rootlet.grammar.automaton import determine
from rootlet.grammar.budget import Budget
from rootlet.grammar.compiler import GrammarCompiler
from rootlet.grammar.constraint import Constraint
from rootlet.grammar.json_schema.strings import string, texts, texts_except
from rootlet.grammar.llguidance_backend import LlguidanceBackend
from rootlet.grammar.notation import as_ebnf, as_lark
from rootlet.grammar.xgrammar_backend import XGrammarBackend

from .hostile import HOSTILE
from .walks import VOCABULARY, allowed

SECONDS = 0.2
_DOUBLING = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)} | {"d60": True}
FOR_EVER = {  # each of these values is judged 2**60 times
    "enum": [[1]],
    "type": "array",
    "items": {"$ref": "#/$defs/d0"},
    "$defs": _DOUBLING,
}
HANG = 120  # seconds: only what never ends takes so long
BACKENDS = {
    "xgrammar": XGrammarBackend(lambda: VOCABULARY),
    "llguidance": LlguidanceBackend(lambda: VOCABULARY),
}


def for_ever(which: int = 0) -> Constraint:
    """Constraints that nobody has ever seen compiled."""
    return Constraint("json_schema", json.dumps(FOR_EVER | {"title": str(which)}))


@pytest.fixture(params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]


@pytest.fixture
def compiler(backend):
    compiler = GrammarCompiler(backend, seconds=10_000)
    yield compiler
    compiler.close()


def chain(levels: int) -> list[Constraint]:
    """Rules each of which leads to one more: a grammar and a schema."""
    names = [f"d{i}" for i in range(levels + 1)]
    rules = [f'{one} ::= "a" {other} | "b"' for one, other in itertools.pairwise(names)]
    schemas = {
        one: {"type": "object", "properties": {"a": {"$ref": f"#/$defs/{other}"}}}
        for one, other in itertools.pairwise(names)
    }
    schema = {"$ref": "#/$defs/d0", "$defs": schemas | {names[-1]: {"type": "integer"}}}
    ebnf = "\n".join([f"root ::= {names[0]}", *rules, f'{names[-1]} ::= "c"'])
    return [Constraint("ebnf", ebnf), Constraint("json_schema", json.dumps(schema))]


@pytest.mark.parametrize("which", [0, 1], ids=["ebnf", "json_schema"])
def test_long_chains_of_rules_do_not_end_the_process(which):
    """llguidance follows them by recursion and dies of 1,600, or of 1,000 optional properties."""
    for levels in (300, 3000):
        BACKENDS["xgrammar"].compile(chain(levels)[which])
    BACKENDS["llguidance"].compile(chain(300)[which])
    with pytest.raises(GrammarError, match=r"1500 levels deep.*grammar_backend='xgrammar'"):
        BACKENDS["llguidance"].compile(chain(3000)[which])


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_constraints_stay_within_their_budget(name, backend):
    budget = Budget(SECONDS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        grammar = backend.compile(Constraint(*HOSTILE[name]), budget)
    except (GrammarError, RecursionError):  # the compiler turns these into a GrammarError too
        pass
    else:
        assert budget.steps <= SECONDS * 500_000
        assert grammar.size < 64 << 20
        assert allowed(grammar.matcher())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 << 10, f"{grown >> 10} MiB"


def test_a_refusal_names_the_part_and_the_option():
    pattern = {"type": "string", "pattern": "^(a|b)*a(a|b){24}$", "maxLength": 200}
    schema = {"type": "object", "properties": {"code": pattern}}
    with pytest.raises(GrammarError) as caught:
        BACKENDS["xgrammar"].compile(Constraint("json_schema", json.dumps(schema)), Budget(SECONDS))
    for said in ("#/properties/code", "(a|b)*a(a|b){24}", "too large", "grammar_compile_budget"):
        assert said in str(caught.value)


# ---- what costs little -------------------------------------------------------------------------------


def steps(kind: str, value: object) -> tuple[int, int]:
    """Steps that both notations take."""
    constraint = Constraint(kind, json.dumps(value))
    found = []
    for write in (as_ebnf, lambda rules, budget: as_lark(rules, budget, open_words=True)):
        budget = Budget(1000)
        write(constraint.rules(budget), budget)
        found.append(budget.steps)
    return found[0], found[1]


def open_object(count: int) -> dict:
    names = [f"{a}_{b}_{i}" for i in range(count) for a, b in [("left", "speed")]]
    return {"properties": {name: {"type": "string"} for name in names}, "additionalProperties": True}


GROWING = {
    "open objects": lambda n: ("json_schema", {"type": "object", **open_object(n)}),
    "optional properties": lambda n: (
        "json_schema",
        {"type": "object", "properties": {f"p{i:05}": {"type": "integer"} for i in range(5 * n)}},
    ),
    "values": lambda n: ("json_schema", {"enum": [f"value {i:05}" if i % 3 else i for i in range(30 * n)]}),
    "texts": lambda n: ("choice", [f"text {i:05}" for i in range(50 * n)]),
    "a list of lengths": lambda n: (
        "json_schema",
        {"type": "array", "items": {"type": "integer"}, "minItems": 10 * n, "maxItems": 20 * n},
    ),
}


@pytest.mark.parametrize("case", GROWING)
def test_steps_grow_with_the_constraint_and_no_faster(case):
    small, large = (steps(*GROWING[case](n)) for n in (30, 120))
    for before, after in zip(small, large):
        assert after < 5 * before
        assert after < 200_000


def test_all_names_but_some_are_as_many_states_as_those_have_letters():
    names = [f"{a}_{b}" for a in ("left", "right", "upper") for b in ("speed", "width", "colour")]
    any_string = len(determine(string(texts())).edges)
    states = len(determine(string(texts_except(names))).edges)
    assert states <= any_string + sum(map(len, names)) + 1


# ---- turns, cancellation, memory ---------------------------------------------------------------------


def test_a_budget_that_was_cancelled_ends_at_the_next_step():
    budget = Budget(1000)
    budget.spend(1, "this")
    budget.cancel()
    with pytest.raises(GrammarError, match="no request waits"):
        budget.spend(1000, "this")


def test_nobody_waits_for_constraints_that_take_for_ever(compiler):
    slow = [compiler.compile(for_ever(i)) for i in range(5)]
    assert compiler.compile(Constraint("regex", "[a-c]{2}")).result(HANG)
    assert not any(one.done() for one in slow)
    for one in slow:
        one.release()
    for one in slow:
        assert isinstance(one.exception(HANG), GrammarError)


def test_the_last_request_that_leaves_ends_the_compilation(compiler):
    first, second = compiler.compile(for_ever()), compiler.compile(for_ever())
    assert first is second
    first.release()
    assert not first.budget.is_cancelled
    second.release()
    assert isinstance(first.exception(HANG), GrammarError)
    assert compiler.compile(for_ever()) is not first


def test_closing_ends_what_is_being_compiled(backend):
    before = set(threading.enumerate())
    compiler = GrammarCompiler(backend, seconds=10_000)
    waiting = [compiler.compile(for_ever(i)) for i in range(20)]
    compiler.close()
    assert all(isinstance(one.exception(0), GrammarError) for one in waiting)
    assert not set(threading.enumerate()) - before
    with pytest.raises(EngineClosedError):
        compiler.compile(for_ever())


def test_grammars_are_kept_by_their_size(backend):
    compiler = GrammarCompiler(backend, max_bytes=1 << 20)
    try:
        for i in range(40):
            compilation = compiler.compile(Constraint("regex", f"[a-z]{{{20 + i}}}"))
            assert compilation.result(HANG).size > 0
            assert compiler.size <= 1 << 20
        assert compiler.compile(compilation.constraint) is compilation
        compiler.clear()
        assert compiler.size == 0
    finally:
        compiler.close()


def test_refusals_keep_no_frames(backend):
    compiler = GrammarCompiler(backend, SECONDS)
    try:
        error = compiler.compile(for_ever()).exception(HANG)
        assert isinstance(error, GrammarError)
        assert error.__traceback__ is error.__context__ is error.__cause__ is None
    finally:
        compiler.close()
