"""Deterministic automata of trees without rules, so that a backend meets no two readings of a character.

Grammar engines keep masks by the place in the grammar. An automaton written as one rule per state, its last
character included, has few places and each is certain: filling a mask takes microseconds, where the same
expression with its repetitions takes up to a tenth of a second.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from ..errors import GrammarError
from .budget import Budget
from .tree import (
    SIGN,
    Chars,
    Choice,
    Every,
    Except,
    Lexeme,
    Node,
    Not,
    Ranges,
    Repeat,
    Sequence,
    Until,
    Words,
    codes,
    common,
    complement,
    joined,
)

T = TypeVar("T")

_STATE_BYTES = 300  # about what a state takes until its automaton is written


class Automaton(NamedTuple):
    """``edges[state]`` are (characters, next state), disjoint; state 0 begins; ``ends`` may be the last."""

    edges: list[list[tuple[Ranges, int]]]
    ends: frozenset[int]

    def entries(self) -> Counter[int]:
        """How many edges lead into each state."""
        return Counter(target for edges in self.edges for _, target in edges)


class NoText(GrammarError):
    """A tree that describes no text."""

    def __init__(self) -> None:
        super().__init__("no text meets all of its pattern, format and length")


def determine(node: Node, budget: Budget | None = None, what: str = "a pattern") -> Automaton:
    """The automaton of a tree. Raises GrammarError if ``what`` is out of budget, and NoText."""
    budget = budget or Budget()
    words = node.item if isinstance(node, Lexeme) else node
    if isinstance(words, Words):
        return Trie(words.words, budget, what).minimal()
    if isinstance(words, Except):
        return _without(determine(words.item, budget, what), Trie(words.words, budget, what), budget, what)
    machine = _Machine(budget, what)
    end = machine.add(node, 0)
    return _subsets(machine, end)


class Trie:
    """Words by their beginnings. A node's children have higher numbers; node 0 is the empty beginning."""

    def __init__(self, words: Iterable[str], budget: Budget, what: str) -> None:
        self.children: list[dict[str, int]] = [{}]
        self.ends: set[int] = set()
        for word in words:
            budget.spend(len(word), what)
            node = 0
            for char in word:
                children = self.children[node]
                if char not in children:
                    children[char] = len(self.children)
                    self.children.append({})
                    budget.spend(1, what, _STATE_BYTES)
                node = children[char]
            self.ends.add(node)

    def minimal(self) -> Automaton:
        """The smallest automaton of the words: nodes that are followed by the same are one state."""
        known: dict[object, int] = {}
        merged = [0] * len(self.children)
        edges: list[list[tuple[Ranges, int]]] = []
        ends = set()
        for node in reversed(range(len(self.children))):
            by_target: dict[int, list[str]] = {}
            for char, child in self.children[node].items():
                by_target.setdefault(merged[child], []).append(char)
            look = node in self.ends, frozenset((to, "".join(sorted(c))) for to, c in by_target.items())
            if look not in known:
                known[look] = len(edges)
                edges.append([(codes("".join(chars)), to) for to, chars in by_target.items()])
                if node in self.ends:
                    ends.add(known[look])
            merged[node] = known[look]
        last = len(edges) - 1  # the root comes last and is like no other: turn the numbers around
        return Automaton(
            [[(ranges, last - to) for ranges, to in edges[last - state]] for state in range(len(edges))],
            frozenset(last - state for state in ends),
        )


def _without(automaton: Automaton, words: Trie, budget: Budget, what: str) -> Automaton:
    """The texts of an automaton that are none of ``words``: a state more for each beginning of a word."""
    size = len(automaton.edges)
    edges = {size + n: [(ranges, size + to) for ranges, to in ways] for n, ways in enumerate(automaton.edges)}
    ends = {size + state for state in automaton.ends}
    todo = [(0, 0, 0)]  # node, the automaton's state, and the number of both
    first_free = 2 * size
    for node, state, number in todo:
        children = words.children[node]
        if state in automaton.ends and node not in words.ends:
            ends.add(number)
        others = complement(codes("".join(children)))
        edges[number] = []
        for ranges, to in automaton.edges[state]:
            budget.spend(10 + 2 * len(children), what, _STATE_BYTES)
            if rest := common(ranges, others) if children else ranges:
                edges[number].append((rest, size + to))
            for char, child in children.items():
                if any(low <= ord(char) <= high for low, high in ranges):
                    edges[number].append((codes(char), first_free))
                    todo.append((child, to, first_free))
                    first_free += 1
    return _pruned(edges, ends)


def _pruned(edges: Mapping[int, list[tuple[Ranges, int]]], ends: Iterable[int]) -> Automaton:
    """Without the states from which no end can be reached, numbered anew; 0 stays the first."""
    alive = _alive(edges, ends)
    if 0 not in alive:
        raise NoText
    numbers = {state: number for number, state in enumerate(sorted(alive))}
    kept = [[(ranges, numbers[to]) for ranges, to in edges[state] if to in alive] for state in numbers]
    return Automaton(kept, frozenset(numbers[state] for state in ends))


class _Machine:
    """A nondeterministic automaton under construction; state 0 begins."""

    def __init__(self, budget: Budget, what: str) -> None:
        self.budget = budget
        self.what = what
        self.steps: list[list[tuple[Ranges, int]]] = [[]]
        self.free: list[list[int]] = [[]]

    def _new(self) -> int:
        self.budget.spend(1, self.what, _STATE_BYTES)
        self.steps.append([])
        self.free.append([])
        return len(self.steps) - 1

    def add(self, node: Node, begin: int) -> int:
        """Add ``node`` behind state ``begin``; returns the state behind it."""
        self.budget.spend(1, self.what)
        if isinstance(node, Lexeme):
            return self.add(node.item, begin)
        if isinstance(node, Chars):
            end = self._new()
            self.steps[begin].append((node.ranges, end))
            return end
        if isinstance(node, Sequence):
            for item in node.items:
                begin = self.add(item, begin)
            return begin
        if isinstance(node, Choice):
            end = self._new()
            for option in node.options:
                start = self._new()
                self.free[begin].append(start)
                self.free[self.add(option, start)].append(end)
            return end
        if isinstance(node, Until):
            return self._until(node, begin)
        if isinstance(node, Not):
            return self._put(_others(node.item, self.budget, self.what), begin)
        if isinstance(node, Every):
            return self._every([determine(item, self.budget, self.what) for item in node.items], begin)
        if isinstance(node, Words):
            return self._words(node.words, begin)
        if isinstance(node, Except):
            return self._put(determine(node, self.budget, self.what), begin)
        if isinstance(node, Repeat):
            return self._repeat(node, begin)
        raise TypeError(f"an automaton cannot say {node!r}")

    def _words(self, words: tuple[str, ...], begin: int) -> int:
        end = self._new()
        numbers = [begin]
        trie = Trie(words, self.budget, self.what)
        for node, children in enumerate(trie.children):
            for char, child in children.items():
                numbers.append(self._new())
                self.steps[numbers[node]].append((codes(char), numbers[child]))
            if node in trie.ends:
                self.free[numbers[node]].append(end)
        return end

    def _put(self, automaton: Automaton, begin: int) -> int:
        """A state for each of the automaton's."""
        states = [self._new() for _ in automaton.edges]
        end = self._new()
        self.free[begin].append(states[0])
        for at, (state, edges) in enumerate(zip(states, automaton.edges)):
            self.steps[state] += [(ranges, states[to]) for ranges, to in edges]
            self.free[state] += [end] * (at in automaton.ends)
        return end

    def _repeat(self, node: Repeat, begin: int) -> int:
        for _ in range(node.least):
            begin = self.add(node.item, begin)
        end = self._new()
        if node.most is None:
            start = self._new()
            self.free[begin].append(start)
            self.free[self.add(node.item, start)].append(start)
            self.free[start].append(end)
            return end
        for _ in range(node.most - node.least):
            self.free[begin].append(end)
            start = self._new()
            self.free[begin].append(start)
            begin = self.add(node.item, start)
        self.free[begin].append(end)
        return end

    def _until(self, node: Until, begin: int) -> int:
        """A state for each beginning of a marker (Aho and Corasick, 1975)."""
        sizes = [len(marker) for marker in node.markers]
        self.budget.spend(sum(sizes), self.what, sum(size * size // 2 for size in sizes))
        states = {marker[:n]: 0 for marker in node.markers for n in range(len(marker))}
        states = {prefix: self._new() for prefix in states}
        end = self._new()
        self.free[begin].append(states[""])
        markers = frozenset(node.markers)
        alphabet = sorted({char for marker in markers for char in marker})
        others = complement(codes(SIGN + "".join(alphabet)))
        for prefix, state in states.items():
            self.steps[state].append((others, states[""]))
            for char in alphabet:
                seen = prefix + char
                self.budget.spend(1, self.what)
                while seen not in states and seen not in markers:
                    self.budget.spend(1 + len(seen) // 256, self.what)
                    seen = seen[1:]
                if seen in states:
                    self.steps[state].append((codes(char), states[seen]))
                elif seen == node.last:
                    self.steps[state].append((codes(char), end))
            if node.last is None:
                self.free[state].append(end)
        return end

    def _every(self, automata: list[Automaton], begin: int) -> int:
        """A state for each combination of states, without those that lead nowhere."""
        cutting = _Cutting(self.budget, self.what)
        numbered = [
            [[(cutting.number(ranges), to) for ranges, to in ways] for ways in one.edges] for one in automata
        ]
        first = (0,) * len(automata)
        edges: dict[tuple[int, ...], list[tuple[Ranges, tuple[int, ...]]]] = {first: []}
        for states in (todo := [first]):
            ways = [dict(one[at]) for one, at in zip(numbered, states)]  # to, by sets: these are disjoint
            for ranges, sets in cutting.parts(frozenset[int]().union(*ways)):
                self.budget.spend(5 * len(ways), self.what)
                target = tuple(next((way[one] for one in sets if one in way), -1) for way in ways)
                if -1 not in target:
                    edges[states].append((ranges, target))
                    if target not in edges:
                        edges[target] = []
                        todo.append(target)
            self.budget.spend(1, self.what, _STATE_BYTES)
        ends = {s for s in edges if all(at in one.ends for one, at in zip(automata, s))}
        alive = _alive(edges, ends)
        if first not in alive:
            raise NoText
        numbers = {states: self._new() for states in edges if states in alive}
        end = self._new()
        self.free[begin].append(numbers[first])
        for states, number in numbers.items():
            self.steps[number] += [(ranges, numbers[to]) for ranges, to in edges[states] if to in alive]
            self.free[number] += [end] * (states in ends)
        return end


def _others(node: Node, budget: Budget, what: str) -> Automaton:
    """The automaton of all other texts; the last state is that of texts which no state was left for."""
    try:
        automaton = determine(node, budget, what)
    except NoText:
        automaton = Automaton([[]], frozenset())
    last = len(automaton.edges)
    edges = []
    for ways in [*automaton.edges, []]:
        left = complement(joined(part for ranges, _ in ways for part in ranges))
        edges.append([*ways, (left, last)] if left else list(ways))
    return Automaton(edges, frozenset(range(last + 1)) - automaton.ends)


def _alive(edges: Mapping[T, list[tuple[Ranges, T]]], ends: Iterable[T]) -> set[T]:
    """The states from which an end can be reached."""
    before = _before(edges)
    alive = set(ends)
    todo = list(alive)
    while todo:
        found = before[todo.pop()] - alive
        alive |= found
        todo += found
    return alive


def _before(edges: Mapping[T, list[tuple[Ranges, T]]]) -> dict[T, set[T]]:
    """The states that have an edge into each."""
    before: dict[T, set[T]] = {state: set() for state in edges}
    for state, ways in edges.items():
        for _, target in ways:
            before[target].add(state)
    return before


def _closure(machine: _Machine, states: set[int]) -> frozenset[int]:
    found, todo = set(states), list(states)
    machine.budget.spend(len(todo), machine.what)
    while todo:
        for state in machine.free[todo.pop()]:
            if state not in found:
                machine.budget.spend(1, machine.what)
                found.add(state)
                todo.append(state)
    # states that only pass on are no difference
    return frozenset(s for s in found if machine.steps[s] or not machine.free[s])


def _subsets(machine: _Machine, end: int) -> Automaton:
    """Subset construction; the characters of a state are cut where any of its sets begins or ends."""
    cutting = _Cutting(machine.budget, machine.what)
    steps = [[(cutting.number(ranges), to) for ranges, to in ways] for ways in machine.steps]
    closures: dict[frozenset[int], frozenset[int]] = {}
    first = _closure(machine, {0})
    numbers = {first: 0}
    edges: list[list[tuple[Ranges, int]]] = []
    todo = [first]
    for states in todo:
        targets: dict[int, set[int]] = {}
        for state in states:
            for number, to in steps[state]:
                targets.setdefault(number, set()).add(to)
        machine.budget.spend(5 + 2 * len(targets), machine.what, _STATE_BYTES)
        by_target: dict[frozenset[int], list[Ranges]] = {}
        for ranges, sets in cutting.parts(frozenset(targets)):
            reached = frozenset[int]().union(*(targets[number] for number in sets))
            machine.budget.spend(1 + len(reached), machine.what)
            if reached not in closures:
                closures[reached] = _closure(machine, set(reached))
            by_target.setdefault(closures[reached], []).append(ranges)
        found = []
        for target, pieces in by_target.items():
            if target not in numbers:
                numbers[target] = len(numbers)
                todo.append(target)
            found.append((_together(pieces), numbers[target]))
        edges.append(found)
    ends = frozenset(number for states, number in numbers.items() if end in states)
    return _minimal(_pruned(dict(enumerate(edges)), ends), machine.budget, machine.what)


class _Cutting:
    """Sets of characters by number, and the parts into which several of them cut what they hold.

    Many states have the same few sets, which may be of hundreds of ranges: each group is cut once.
    """

    def __init__(self, budget: Budget, what: str) -> None:
        self._budget = budget
        self._what = what
        self._numbers: dict[Ranges, int] = {}
        self._sets: list[Ranges] = []
        self._parts: dict[frozenset[int], list[tuple[Ranges, frozenset[int]]]] = {}

    def number(self, ranges: Ranges) -> int:
        """The number of a set."""
        if ranges not in self._numbers:
            self._numbers[ranges] = len(self._sets)
            self._sets.append(ranges)
        return self._numbers[ranges]

    def parts(self, sets: frozenset[int]) -> list[tuple[Ranges, frozenset[int]]]:
        """(characters, the sets that they are all in), disjoint."""
        if sets not in self._parts:
            opened: dict[int, list[int]] = {}
            closed: dict[int, list[int]] = {}
            for number in sets:
                for low, high in self._sets[number]:
                    opened.setdefault(low, []).append(number)
                    closed.setdefault(high + 1, []).append(number)
            here: set[int] = set()
            found: dict[frozenset[int], list[tuple[int, int]]] = {}
            for low, after in itertools.pairwise(sorted({*opened, *closed})):
                here.difference_update(closed.get(low, ()))
                here.update(opened.get(low, ()))
                self._budget.spend(1 + len(here), self._what)
                if here:
                    found.setdefault(frozenset(here), []).append((low, after - 1))
            self._parts[sets] = [(joined(ranges), members) for members, ranges in found.items()]
        return self._parts[sets]


def _together(pieces: list[Ranges]) -> Ranges:
    return pieces[0] if len(pieces) == 1 else joined(itertools.chain(*pieces))


def accepts(automaton: Automaton, text: str) -> bool:
    """Whether it describes this text."""
    state = 0
    for code in map(ord, text):
        for ranges, target in automaton.edges[state]:
            if any(low <= code <= high for low, high in ranges):
                state = target
                break
        else:
            return False
    return state in automaton.ends


def lengths(automaton: Automaton) -> tuple[int, float]:
    """How many characters its texts have at least and at most."""
    shortest, states = 0, {0}
    while not states & automaton.ends:
        states = {target for state in states for _, target in automaton.edges[state]}
        shortest += 1
    return shortest, _longest(automaton)[0]


def _longest(automaton: Automaton) -> list[float]:
    """How many characters may follow each state at most."""
    longest = [math.inf] * len(automaton.edges)
    before = _before(dict(enumerate(automaton.edges)))
    remaining = [len({target for _, target in edges}) for edges in automaton.edges]
    todo = [state for state, count in enumerate(remaining) if not count]
    for state in todo:  # whatever comes after it is known
        longest[state] = max((longest[to] + 1 for _, to in automaton.edges[state]), default=0)
        for earlier in before[state]:
            remaining[earlier] -= 1
            if not remaining[earlier]:
                todo.append(earlier)
    return longest


def _minimal(automaton: Automaton, budget: Budget, what: str) -> Automaton:
    """The same language with states merged that no text tells apart (Moore's refinement).

    It begins with how much text may follow at most, which parts the states of a bounded length at once.
    """
    edges = automaton.edges
    known_groups: dict[object, int] = {}
    groups = [
        known_groups.setdefault((state in automaton.ends, longest), len(known_groups))
        for state, longest in enumerate(_longest(automaton))
    ]
    count = len(known_groups)
    while True:
        known: dict[object, int] = {}
        refined = []
        for state, group in enumerate(groups):
            by_group: dict[int, list[Ranges]] = {}
            budget.spend(2 + 3 * len(edges[state]), what)
            for ranges, target in edges[state]:
                by_group.setdefault(groups[target], []).append(ranges)
            look = group, frozenset((to, _together(pieces)) for to, pieces in by_group.items())
            refined.append(known.setdefault(look, len(known)))
        groups = refined
        if len(known) == count:
            break
        count = len(known)
    # in order of first appearance: state 0 stays the first
    merged: list[list[tuple[Ranges, int]]] = []
    for state, group in enumerate(groups):
        if group == len(merged):
            targets: dict[int, list[Ranges]] = {}
            for ranges, target in edges[state]:
                targets.setdefault(groups[target], []).append(ranges)
            merged.append([(_together(pieces), to) for to, pieces in targets.items()])
    return Automaton(merged, frozenset(groups[state] for state in automaton.ends))
