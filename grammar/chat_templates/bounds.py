"""What one rendering of a chat template may do: a number of steps, and no value above a size.

The sizes of what a function would make are looked at before it is called, from its name and arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from jinja2 import TemplateError
from jinja2.utils import Namespace

_MAX_NUMBER: Final = 10_000  # of an argument: widths, counts, indents
_MADE_PER_STEP: Final = 32
_VALUE: Final = 8

_TOO_LARGE: Final = "the chat template makes something larger than %d characters"

_GROWING: Final = frozenset(("join", "indent", "wordwrap", "translate", "expandtabs", "tojson"))
_FORMATS: Final = frozenset(("format", "format_map", "%"))
# Those that can make much of one small argument, or of texts; of the others only the numbers matter.
CHECKED: Final = _GROWING | _FORMATS | {"replace"}
_WIDE: Final = re.compile(r"\d{5}|%[^a-z]*\*")

_Value = TypeVar("_Value")


def measure(value: Any, limit: int | None) -> int:
    """Size of ``value``: its characters and eight for each value, those inside it each time they occur.

    Raises TemplateError above ``limit``, before it walks through more than that and one list or mapping.
    """
    total = 0
    waiting: list[Iterable[Any]] = [(value,)]
    while waiting:
        for item in waiting.pop():
            total += _VALUE
            kind = type(item)
            if kind is str:
                total += len(item)
            elif kind is dict:
                waiting += (item, item.values())
            elif kind is list:
                waiting.append(item)
            elif kind is int:
                total += item.bit_length() // 8
            elif item is not None:
                total += _measure_rare(item, waiting)
        if limit is not None and total > limit:
            raise TemplateError(_TOO_LARGE % limit)
    return total


def _measure_rare(item: Any, waiting: list[Iterable[Any]]) -> int:
    """What ``item`` adds to its eight; ``waiting`` gets what is inside it."""
    if isinstance(item, (str, bytes)):
        return len(item)
    if isinstance(item, int):
        return item.bit_length() // 8
    if isinstance(item, range):
        return _VALUE * len(item)
    if isinstance(item, (list, tuple, set, frozenset)):
        waiting.append(item)
    elif isinstance(item, Mapping):
        waiting += (item, item.values())
    elif isinstance(item, Namespace):
        waiting.append((item._Namespace__attrs,))
    return 0


class Budget:
    """The steps that one rendering has left, and the largest ``size`` of a value in it."""

    __slots__ = ("_steps", "size")

    def __init__(self, steps: int, size: int) -> None:
        self._steps = steps
        self.size = size

    def spend(self, steps: int) -> None:
        """Take ``steps`` from those left; raises TemplateError if there are no longer so many."""
        self._steps -= steps
        if self._steps < 0:
            raise TemplateError("the chat template takes too many steps")

    def fit(self, size: int) -> None:
        """Raise TemplateError for a value of a ``size`` that is too large."""
        if size > self.size:
            raise TemplateError(_TOO_LARGE % self.size)

    def pay(self, value: _Value, steps: int = 1) -> _Value:
        """``value`` as it is, once it has been found to fit and ``steps`` and its size are spent."""
        given: Any = value  # checkers do not follow what is asked of a type
        kind = type(given)
        if kind is str:
            size = len(given)
        elif kind is bool or value is None:
            size = 0
        elif kind is int:
            size = given.bit_length() // 8
        else:
            size = measure(given, self.size)
        if size > self.size:
            raise TemplateError(_TOO_LARGE % self.size)
        self._steps -= steps + size // _MADE_PER_STEP
        if self._steps < 0:
            raise TemplateError("the chat template takes too many steps")
        return value

    def each(self, values: Any) -> Iterator[Any]:
        """``values`` of a loop, a step each."""
        for value in values:
            self.spend(1)
            yield value

    def collect(self, pieces: Iterator[str]) -> str:
        """All ``pieces`` of a text, as long as it is not too long."""
        text, length = [], 0
        for piece in pieces:
            length += len(piece)
            if length > self.size:
                raise TemplateError(f"the chat template writes more than {self.size} characters")
            text.append(piece)
        return "".join(text)

    # before something is called

    def check(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], subject: Sequence[Any] = ()
    ) -> Sequence[Any]:
        """Raise TemplateError for a function of texts that would make something huge of ``args``.

        ``subject`` is what a method belongs to. Returns ``args``, with lists in place of the iterators that
        had to be measured.
        """
        if name in _GROWING:
            args = [list(value) if isinstance(value, Iterator) else value for value in args]
        values = (*subject, *args, *kwargs.values())
        numbers = [abs(value) for value in values if isinstance(value, (int, float))]
        if max(numbers, default=0) > _MAX_NUMBER and len(values) > 1:
            raise TemplateError(f"the chat template calls {name} with a number above {_MAX_NUMBER}")
        if name in CHECKED:
            self._check_texts(name, values, numbers)
        return args

    def check_binop(self, operator: str, left: Any, right: Any) -> None:
        """Raise TemplateError if ``left operator right`` would be huge."""
        if operator == "%" and isinstance(left, (str, bytes)):
            self.check("%", right if isinstance(right, tuple) else (right,), {}, (left,))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.fit(left.bit_length() * max(right, 0) // 8)
        elif operator == "*":
            for value, count in ((left, right), (right, left)):
                if isinstance(count, int):
                    self.fit(measure(value, self.size) * (count if not isinstance(value, int) else 1))

    def _check_texts(self, name: str, values: Sequence[Any], numbers: Sequence[float]) -> None:
        texts = [value for value in values if isinstance(value, str)]
        if name in _FORMATS and any(_WIDE.search(text) for text in texts):
            raise TemplateError("the chat template formats with a width of its own that is too large")
        if name == "replace" and len(texts) >= 3:
            text, old, new = texts[:3]
            self.fit(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
        elif name in _GROWING:
            sizes = sorted((measure(value, self.size) for value in values), reverse=True)
            factor = max([1, *numbers, *sizes[1:2]])
            self.fit(int(sizes[0] * factor) if sizes else 0)
