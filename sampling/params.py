"""``SamplingParams``: what one request asks of the sampler, checked once and then never changed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, SupportsInt, TypeVar, cast

from ..errors import InvalidParameterError, InvalidRequestError, short, unknown_option
from ..signatures import suggest_names
from .limits import MAX_ENTRIES, MAX_SAMPLES, MAX_STOP_CHARS, MAX_STOPS, check_count, check_product

_Entry = TypeVar("_Entry")

GREEDY_TEMPERATURE = 1e-6
"""Temperatures below this one mean greedy decoding."""

_SEEDS = range(-(2**63), 2**63)
_BEYOND = 2**128  # no parameter comes near it; Python refuses to write out integers of thousands of digits
_MAX_LOGIT_BIAS = 100.0


class HasJsonSchema(Protocol):
    """What can tell a JSON schema of itself: the class of a Pydantic model."""

    def model_json_schema(self) -> dict[str, Any]:
        """The schema, as a dict."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request is sampled and when it stops. Frozen; ``dataclasses.replace`` checks again.

    Length and stopping:
        max_new_tokens: at most this many new tokens (>= 0; 0 still samples one, so that a prompt can
            be scored); ``None`` fills the context.
        min_new_tokens: stop tokens are banned while fewer tokens than this were generated.
        stop: a string or strings that end the request; kept as a tuple.
        stop_token_ids: token ids that end the request; kept as a tuple without repeats.
        ignore_eos: end of sequence and ``stop_token_ids`` do not stop the request; ``stop`` does.
        no_stop_trim: keep the matched stop string or token in the text.

    Choice of tokens:
        temperature: logits are divided by it; below 1e-6 decoding is greedy.
        top_k: keep the k most probable tokens; -1 keeps all; 1 is greedy. Greedy decoding by
            temperature does not look at it.
        top_p: keep the fewest most probable tokens whose probabilities reach this sum, in (0, 1].
        min_p: drop tokens less probable than this fraction of the most probable one, in [0, 1].
        frequency_penalty: subtracted from a logit once per occurrence in the output, in [-2, 2].
        presence_penalty: subtracted once if the token occurs in the output, in [-2, 2].
        repetition_penalty: divides positive and multiplies other logits of tokens in the prompt
            or the output, in (0, 2].
        logit_bias: ``{token id: bias}`` added to the raw logits, each in [-100, 100]. Keys may be
            decimal strings, since JSON has no other keys.
        seed: a signed 64-bit integer; the same seed, parameters and prompt draw the same tokens. ``None``
            draws a seed.
        n: how many samples of the prompt to make, 1 to 1024.

    Constraints, at most one; a token that would break it is never drawn, and the request ends when it is met:
        json_schema: a JSON schema: a string, a dict, or a Pydantic model (the class; kept as a string);
            ``"$$ANY$$"`` is any JSON document.
        regex: a regular expression for the whole output.
        ebnf: a grammar; the output is derived from its rule ``root``.
        structural_tag: free text with structured parts (a string or a dict, kept as a string).
        choice: a list of texts, one of which is the output; kept as a tuple.

    Text: ``skip_special_tokens``, ``spaces_between_special_tokens``. ``custom_params``: a dict
    handed to the caller's own logit processor, otherwise unread.

    Integers may be given as integral floats. Any other type, NaN, infinity or a value out of range
    raises :class:`~rootlet.errors.InvalidParameterError`; so do counts beyond :mod:`rootlet.sampling.limits`.
    """

    max_new_tokens: int | None = 128
    stop: str | Iterable[str] | None = ()
    stop_token_ids: Iterable[int] | None = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    n: int = 1
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    json_schema: str | dict[str, Any] | HasJsonSchema | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | dict[str, Any] | None = None
    choice: Iterable[str] | None = None
    custom_params: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        stops = _strings("stop", self.stop)
        self._set("stop", stops)
        self._set("stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        self._set("logit_bias", _logit_bias(self.logit_bias))
        for name in _FLOATS:
            self._set(name, _float(name, getattr(self, name)))
        for name in _INTS:
            self._set(name, _int(name, getattr(self, name)))
        for name in _OPTIONAL_INTS:
            value = getattr(self, name)
            self._set(name, None if value is None else _int(name, value))
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise _wrong_type(name, getattr(self, name), "True or False")
        self._check_ranges()
        self._check_lengths()
        self._check_counts(stops)
        self._check_constraints()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the one way to normalise a field of a frozen dataclass

    def _check_ranges(self) -> None:
        """Bounds of every number that stands alone."""
        _require(self.temperature >= 0, f"temperature must be non-negative, got {self.temperature}.")
        _require(0 < self.top_p <= 1, f"top_p must be in (0, 1], got {self.top_p}.")
        _require(0 <= self.min_p <= 1, f"min_p must be in [0, 1], got {self.min_p}.")
        # Greedy decoding overrides top_k, and callers of other systems pair temperature=0 with top_k=0.
        _require(
            self.temperature < GREEDY_TEMPERATURE or self.top_k == -1 or self.top_k >= 1,
            f"top_k must be -1 (disable), or at least 1, got {self.top_k}.",
        )
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            _require(-2 <= value <= 2, f"{name} must be in [-2, 2], got {value}.")
        _require(
            0 < self.repetition_penalty <= 2,
            f"repetition_penalty must be in (0, 2], got {self.repetition_penalty}.",
        )
        _require(self.n >= 1, f"n must be at least 1, got {self.n}.")
        check_count("n", self.n, MAX_SAMPLES, "Send the prompt again for more samples.")
        _require(
            self.seed is None or self.seed in _SEEDS,
            f"seed must be in [-2**63, 2**63 - 1] or None, got {self.seed}.",
        )

    def _check_lengths(self) -> None:
        least, most = self.min_new_tokens, self.max_new_tokens
        _require(least >= 0, f"min_new_tokens must be in (0, max_new_tokens], got {least}.")
        if most is not None:
            _require(most >= 0, f"max_new_tokens must be at least 0, got {most}.")
            _require(least <= most, f"min_new_tokens must be in (0, max_new_tokens({most})], got {least}.")

    def _check_counts(self, stops: tuple[str, ...]) -> None:
        check_count("The number of stop strings", len(stops), MAX_STOPS)
        check_count("The length of all stop strings together", sum(map(len, stops)), MAX_STOP_CHARS)
        for name in ("logit_bias", "stop_token_ids", "custom_params"):
            value = getattr(self, name)
            if isinstance(value, (dict, tuple)):
                check_product(f"Entries of {name}", len(value), self.n, MAX_ENTRIES)

    def _check_constraints(self) -> None:
        model_json_schema = getattr(self.json_schema, "model_json_schema", None)
        if callable(model_json_schema):  # a Pydantic model
            try:
                self._set("json_schema", model_json_schema())
            except Exception as error:
                raise InvalidParameterError(
                    f"json_schema: {short(self.json_schema)} has no schema: {short(error)}"
                ) from error
        for name in ("json_schema", "structural_tag"):
            if isinstance(getattr(self, name), dict):
                self._set(name, _dump(name, getattr(self, name)))
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        _require(
            len(given) <= 1,
            "Only one of regex, json_schema, or ebnf can be set."
            f" structural_tag and choice count as well; got {' and '.join(given)}.",
        )
        for name in given:
            if name == "choice":
                self._set(name, _choice(self.choice))
            elif not isinstance(getattr(self, name), str):
                raise _wrong_type(name, getattr(self, name), "a string")
        if self.custom_params is not None and not isinstance(self.custom_params, dict):
            raise _wrong_type("custom_params", self.custom_params, "a dict or None")

    def __hash__(self) -> int:
        # Equal parameters have equal hashes; the two dict fields hash by what of them is hashable.
        rest = tuple(getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _DICTS)
        return hash((rest, tuple(sorted((self.logit_bias or {}).items()))))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingParams:
        """Build from a mapping of field names.

        Raises:
            UnknownOptionError: a name is no field; the message suggests the nearest one.
            InvalidParameterError: ``values`` is no mapping, or a value is not allowed.
        """
        if not isinstance(values, Mapping):
            raise _wrong_type("sampling_params", values, "a dict or SamplingParams")
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise unknown_option("sampling parameter", str(name), known)
        return cls(**values)

    @classmethod
    def read(cls, given: object) -> SamplingParams:
        """The parameters a caller gave: such an object, a dict of its fields, or None for the defaults.

        Raises InvalidRequestError for anything else, and what :meth:`from_dict` raises.
        """
        if given is None:
            return cls()
        if isinstance(given, cls):
            return given
        if isinstance(given, dict):
            return cls.from_dict(given)
        raise InvalidRequestError(
            f"sampling_params must be a dict or SamplingParams, got {type(given).__name__}: {short(given)}."
        )

    @property
    def is_greedy(self) -> bool:
        """True if the most probable token is always taken: temperature below 1e-6, or ``top_k == 1``."""
        return self.temperature < GREEDY_TEMPERATURE or self.top_k == 1

    def check_vocab(self, vocab_size: int) -> None:
        """Raise InvalidParameterError if a stop token or a biased token has an id >= ``vocab_size``."""
        for name in ("stop_token_ids", "logit_bias"):
            for token_id in getattr(self, name) or ():
                _require(
                    token_id < vocab_size,
                    f"{name} names token id {token_id}, but this vocabulary ends at {vocab_size - 1}.",
                )


# dataclass writes the method, so there is no definition to stand above
SamplingParams.__init__ = suggest_names("sampling parameter")(SamplingParams.__init__)  # type: ignore[method-assign]

_FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
)
_INTS = ("top_k", "min_new_tokens", "n")
_OPTIONAL_INTS = ("max_new_tokens", "seed")
_FLAGS = ("ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim")
_DICTS = ("logit_bias", "custom_params")

CONSTRAINTS = ("json_schema", "regex", "ebnf", "structural_tag", "choice")
"""The parameters that constrain the output."""


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise InvalidParameterError(message)


def _wrong_type(name: str, value: object, wanted: str) -> InvalidParameterError:
    return InvalidParameterError(f"{name} must be {wanted}, got {short(value)} ({type(value).__name__}).")


def _float(name: str, value: object) -> float:
    """``value`` as a finite Python float; bool, str and the like are refused."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _wrong_type(name, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _wrong_type(name, value, "a finite number")
    return number


def _int(name: str, value: object) -> int:
    """``value`` as a Python int; an integral float passes, as JSON writers often produce one."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _wrong_type(name, value, "an integer")
    try:
        is_whole = isinstance(value, numbers.Integral) or float(value).is_integer()
    except OverflowError:  # a fraction
        is_whole = False
    if not is_whole:
        raise _wrong_type(name, value, "an integer")
    number = int(cast("SupportsInt", value))  # typeshed's Real has no __int__, though every such number does
    if abs(number) >= _BEYOND:
        raise _wrong_type(name, value, "an integer of reasonable size")
    return number


def _token_id(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _wrong_type(name, value, "made of integer token ids")
    token_id = int(value)
    _require(token_id >= 0, f"{name} must be made of token ids >= 0, got {short(value)}.")
    _require(token_id < 2**31, f"{name} must be made of token ids below 2**31, got {short(value)}.")
    return token_id


def _entries(name: str, value: object, entries: Callable[[], Iterable[_Entry]], wanted: str) -> list[_Entry]:
    """What ``entries`` of ``value`` are; they may be the caller's own code, which raises or never ends."""
    try:
        read = list(itertools.islice(entries(), MAX_ENTRIES + 1))
    except Exception as error:
        raise _wrong_type(name, value, wanted) from error
    _require(len(read) <= MAX_ENTRIES, f"Entries of {name} must be at most {MAX_ENTRIES:,}, got more.")
    return read


def _strings(name: str, value: object) -> tuple[str, ...]:
    """A string or iterable of strings as a tuple; None is the empty tuple."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise _wrong_type(name, value, "a string or a list of strings")
    # a set has no order of its own, and the first stop string in order wins
    items = tuple(sorted(value, key=str)) if isinstance(value, (set, frozenset)) else tuple(value)
    for item in items:
        if not isinstance(item, str):
            raise _wrong_type(name, item, "made of strings")
        _require(item != "", f"{name} must not contain an empty string: it would match at once.")
    return items


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    """An iterable of token ids as a tuple without repeats; None is the empty tuple."""
    if value is None:
        return ()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise _wrong_type(name, value, "a list of integer token ids")
    items = _entries(name, value, value.__iter__, "a list of integer token ids")
    return tuple(dict.fromkeys(_token_id(name, item) for item in items))


def _logit_bias(value: object) -> dict[int, float] | None:
    """A checked copy with int keys; None and the empty mapping are None."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _wrong_type("logit_bias", value, "a dict of token id to number")
    biases: dict[int, float] = {}
    for key, bias in _entries("logit_bias", value, value.items, "a dict of token id to number"):
        is_decimal = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20
        token_id = _token_id("logit_bias", int(key) if is_decimal else key)
        number = _float(f"logit_bias[{token_id}]", bias)
        _require(
            -_MAX_LOGIT_BIAS <= number <= _MAX_LOGIT_BIAS,
            f"logit_bias[{token_id}] must be in [-100, 100], got {number}.",
        )
        _require(token_id not in biases, f"logit_bias names token id {token_id} twice.")
        biases[token_id] = number
    return biases or None


def _choice(value: object) -> tuple[str, ...]:
    """Texts to choose from, as a tuple without repeats."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise _wrong_type("choice", value, "a list of strings")
    _require(len(value) > 0, "choice must have at least one text to choose.")
    return tuple(dict.fromkeys(value))


def _dump(name: str, value: dict[str, Any]) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(f"{name} is a dict that JSON cannot write: {error}.") from error
    except RecursionError:
        raise InvalidParameterError(f"{name} is nested too deeply to be written as JSON.") from None
