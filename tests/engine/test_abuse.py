"""Any value in any field of any request: an answer or an error of ours, and the engine as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import math
from collections.abc import Mapping
from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rootlet
from rootlet.engine.schedule.invariants import check_invariants
from rootlet.errors import RootletError

GOOD = {"max_new_tokens": 3, "ignore_eos": True}


class Hostile:
    """Raises whatever is asked of it."""

    def __repr__(self):
        raise ZeroDivisionError

    __str__ = __hash__ = __len__ = __iter__ = __eq__ = __bool__ = __call__ = __int__ = __float__ = __repr__


class HostileDict(Mapping):
    """A mapping in name only."""

    def __getitem__(self, key):
        raise ZeroDivisionError

    __iter__ = __len__ = __repr__ = lambda self: self[0]


class NoModel:
    """Like a Pydantic model whose fields no schema can describe."""

    @classmethod
    def model_json_schema(cls):
        raise TypeError("no schema for a lock")


class Text(str):
    """A str that is not quite one."""

    __slots__ = ()


NUMBERS = [
    None, True, False, 0, 1, -1, 2, 7, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**40, 10**5000,
    0.0, -0.0, 0.5, 1.0, 1e-45, 1e30, 1e300, math.inf, -math.inf, math.nan, Fraction(10**400, 3),
]  # fmt: skip
TEXTS = ["", "a", "\x00", "\ud800", "$$ANY$$", "{}", "1", Text("text"), b"a", bytearray(b"a")]
LISTS = [[], [0], [[0]], [[]], [None], ["a"], [1, 200], [2**40], [-1], (), (1, 2), set(), {1}, frozenset("a")]
DICTS = [{}, {"a": 1}, {1: 2.0}, {"1": 1}, {1: math.nan}, {"type": "object"}, {"id": "x"}, {None: None}]
OBJECTS = [
    object(), object, print, len, lambda logits, params: logits, lambda: None,
    range(3), range(2**50), iter([1]), itertools.count(), HostileDict(), NoModel,
]  # fmt: skip
TENSORS = [torch.zeros(3, 64), torch.zeros(0), torch.tensor(1), torch.zeros(2, 64, device="meta")]
ODD = [*NUMBERS, *TEXTS, *LISTS, *DICTS, *OBJECTS, *TENSORS, Hostile(), Hostile]
NAMES = [field.name for field in dataclasses.fields(rootlet.SamplingParams)]
ARGUMENTS = [name for name in inspect.signature(rootlet.Engine.submit).parameters if name != "self"]


@pytest.fixture(scope="module")
def engine(tiny_text_model):
    options = {"load_format": "dummy", "max_total_tokens": 2048, "dtype": "float32"}
    with rootlet.Engine(tiny_text_model, **options) as engine:
        yield engine


@pytest.mark.parametrize("name", NAMES)
def test_any_value_of_a_parameter_is_taken_or_refused_by_an_error_of_ours(name):
    for value in ODD:
        with contextlib.suppress(RootletError):
            rootlet.SamplingParams(**(GOOD | {name: value}))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_any_value_of_an_argument_is_taken_or_refused_by_an_error_of_ours(engine, name):
    for value in ODD:
        with contextlib.suppress(RootletError):
            engine.submit(**({"prompt": "ab", "sampling_params": GOOD} | {name: value})).abort()


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    params=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(range(len(ODD))), max_size=3),
    arguments=st.dictionaries(st.sampled_from(ARGUMENTS), st.sampled_from(range(len(ODD))), max_size=2),
    batch=st.booleans(),
)
def test_only_errors_of_ours_and_an_engine_that_is_as_it_was(engine, params, arguments, batch):
    params = GOOD | {name: ODD[i] for name, i in params.items()}
    given = {"prompt": "ab", "sampling_params": params} | {name: ODD[i] for name, i in arguments.items()}
    with contextlib.suppress(RootletError):
        if batch:
            outputs = engine.generate(**given)
            several = isinstance(outputs, list) or given.get("stream") is True
            assert all(output.prompt_tokens for output in (outputs if several else [outputs]))
        else:
            assert engine.submit(**given).result(60).finish_reason
    assert engine.generate("cd", GOOD).completion_tokens == 3
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_compiling) == (0, 0, 0)
    assert stats.pages_free + stats.pages_evictable == stats.pages_total
    engine._loop.call(lambda core: check_invariants(core.scheduler))
