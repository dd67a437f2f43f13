"""SamplingParams: defaults, every validation rule, normalisation, replace, from_dict."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from rootlet.errors import InvalidParameterError, UnknownOptionError
from rootlet.sampling.params import SamplingParams


def test_defaults_are_those_of_the_documentation():
    assert dataclasses.asdict(SamplingParams()) == {
        "max_new_tokens": 128,
        "stop": (),
        "stop_token_ids": (),
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "min_new_tokens": 0,
        "n": 1,
        "ignore_eos": False,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "no_stop_trim": False,
        "logit_bias": None,
        "seed": None,
        "json_schema": None,
        "regex": None,
        "ebnf": None,
        "structural_tag": None,
        "choice": None,
        "custom_params": None,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.5}, "temperature must be non-negative, got -0.5."),
        ({"temperature": -1e-9}, "temperature must be non-negative, got -1e-09."),
        ({"top_p": 0}, "top_p must be in (0, 1], got 0.0."),
        ({"top_p": 1.5}, "top_p must be in (0, 1], got 1.5."),
        ({"top_p": -0.1}, "top_p must be in (0, 1], got -0.1."),
        ({"min_p": -0.1}, "min_p must be in [0, 1], got -0.1."),
        ({"min_p": 1.01}, "min_p must be in [0, 1], got 1.01."),
        ({"top_k": 0}, "top_k must be -1 (disable), or at least 1, got 0."),
        ({"top_k": -2}, "top_k must be -1 (disable), or at least 1, got -2."),
        ({"frequency_penalty": 2.1}, "frequency_penalty must be in [-2, 2], got 2.1."),
        ({"frequency_penalty": -2.1}, "frequency_penalty must be in [-2, 2], got -2.1."),
        ({"presence_penalty": 2.1}, "presence_penalty must be in [-2, 2], got 2.1."),
        ({"presence_penalty": -2.1}, "presence_penalty must be in [-2, 2], got -2.1."),
        ({"repetition_penalty": 0}, "repetition_penalty must be in (0, 2], got 0.0."),
        ({"repetition_penalty": -1}, "repetition_penalty must be in (0, 2], got -1.0."),
        ({"repetition_penalty": 2.5}, "repetition_penalty must be in (0, 2], got 2.5."),
        ({"min_new_tokens": -1}, "min_new_tokens must be in (0, max_new_tokens], got -1."),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1."),
        (
            {"min_new_tokens": 5, "max_new_tokens": 4},
            "min_new_tokens must be in (0, max_new_tokens(4)], got 5.",
        ),
        ({"regex": "a", "ebnf": "b"}, "Only one of regex, json_schema, or ebnf can be set."),
        ({"regex": "", "json_schema": ""}, "Only one of regex, json_schema, or ebnf can be set."),
        ({"json_schema": {}, "ebnf": ""}, "Only one of regex, json_schema, or ebnf can be set."),
        ({"n": 0}, "n must be at least 1, got 0."),
        ({"seed": -(2**63) - 1}, f"seed must be in [-2**63, 2**63 - 1] or None, got {-(2**63) - 1}."),
        ({"seed": 2**63}, f"seed must be in [-2**63, 2**63 - 1] or None, got {2**63}."),
        ({"logit_bias": {3: 100.5}}, "logit_bias[3] must be in [-100, 100], got 100.5."),
        ({"logit_bias": {3: -101}}, "logit_bias[3] must be in [-100, 100], got -101.0."),
        ({"logit_bias": {-3: 1}}, "logit_bias must be made of token ids >= 0, got -3."),
        ({"logit_bias": {3: 1, "3": 2}}, "logit_bias names token id 3 twice."),
        ({"stop_token_ids": [1, -2]}, "stop_token_ids must be made of token ids >= 0, got -2."),
        ({"stop": ""}, "stop must not contain an empty string"),
        ({"stop": ["a", ""]}, "stop must not contain an empty string"),
    ],
)
def test_values_out_of_range_are_refused_with_their_message(values, message):
    with pytest.raises(InvalidParameterError) as caught:
        SamplingParams(**values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, bad) for name in ("temperature", "top_p", "min_p") for bad in ("0.5", None, True, [1])],
        *[(name, bad) for name in ("frequency_penalty", "repetition_penalty") for bad in ("1", None, False)],
        *[("temperature", bad) for bad in (float("nan"), float("inf"), -float("inf"), 10**400, 1j)],
        *[(name, float("nan")) for name in ("top_p", "min_p", "presence_penalty", "repetition_penalty")],
        *[(name, bad) for name in ("top_k", "n", "min_new_tokens") for bad in (1.5, True, "1", None)],
        *[(name, bad) for name in ("max_new_tokens", "seed") for bad in (1.5, True, "1", float("inf"))],
        *[
            (name, bad)
            for name in ("ignore_eos", "no_stop_trim", "skip_special_tokens")
            for bad in (1, "yes")
        ],
        ("spaces_between_special_tokens", None),
        *[("stop", bad) for bad in (5, [5], b"x", [b"x"], {"a": 1}, ["a", None])],
        *[("stop_token_ids", bad) for bad in (5, "5", [True], ["5"], [1.0], {1: 2}, b"ab")],
        *[
            ("logit_bias", bad)
            for bad in ([1], {True: 1}, {"x": 1}, {1.0: 1}, {1: "2"}, {1: True}, {1: None})
        ],
        ("logit_bias", {1: float("nan")}),
        ("logit_bias", {1: float("inf")}),
        *[(name, 5) for name in ("json_schema", "regex", "ebnf", "custom_params")],
        ("regex", {"type": "object"}),
        ("json_schema", {"type": object()}),
    ],
)
def test_wrong_types_are_refused_naming_the_field(name, value):
    with pytest.raises(InvalidParameterError, match=name):
        SamplingParams(**{name: value})


def test_limits_themselves_are_allowed():
    low = SamplingParams(
        temperature=0, top_p=1e-9, min_p=0, top_k=1, frequency_penalty=-2, presence_penalty=-2,
        repetition_penalty=1e-3, max_new_tokens=0, seed=-(2**63), logit_bias={0: -100},
    )  # fmt: skip
    high = SamplingParams(
        temperature=1e9, top_p=1, min_p=1, top_k=2**31, frequency_penalty=2, presence_penalty=2,
        repetition_penalty=2, max_new_tokens=7, min_new_tokens=7, seed=2**63 - 1, logit_bias={0: 100},
    )  # fmt: skip
    assert low.max_new_tokens == 0
    assert high.min_new_tokens == 7
    assert SamplingParams(max_new_tokens=None, min_new_tokens=9).max_new_tokens is None


def test_numbers_are_normalised_to_plain_python():
    params = SamplingParams(
        temperature=np.float32(0.5),
        top_k=np.int64(5),
        max_new_tokens=16.0,
        top_p=1,
        stop_token_ids=np.array([3]),
    )
    assert (params.temperature, params.top_k, params.max_new_tokens, params.top_p) == (0.5, 5, 16, 1.0)
    kinds = [type(v) for v in (params.temperature, params.top_k, params.max_new_tokens, params.top_p)]
    assert kinds == [float, int, int, float]
    assert [type(t) for t in params.stop_token_ids] == [int]


def test_stops_become_tuples():
    assert SamplingParams(stop="a").stop == ("a",)
    assert SamplingParams(stop=["b", "a"]).stop == ("b", "a")
    assert SamplingParams(stop=None).stop == SamplingParams(stop=[]).stop == ()
    assert SamplingParams(stop={"b", "a"}).stop == ("a", "b")
    assert SamplingParams(stop_token_ids=[5, 3, 5]).stop_token_ids == (5, 3)
    assert SamplingParams(stop_token_ids=None).stop_token_ids == ()
    assert SamplingParams(stop_token_ids={7}).stop_token_ids == (7,)


def test_logit_bias_is_a_copy_with_int_keys():
    given = {"7": 1, 8: -2.5}
    params = SamplingParams(logit_bias=given)
    given[9] = 5.0
    assert params.logit_bias == {7: 1.0, 8: -2.5}
    assert SamplingParams(logit_bias={}).logit_bias is None


def test_json_schema_dict_becomes_text():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert json.loads(SamplingParams(json_schema=schema).json_schema) == schema
    assert SamplingParams(json_schema='{"type": "object"}').json_schema == '{"type": "object"}'


def test_frozen_hashable_and_comparable():
    params = SamplingParams(stop="a", logit_bias={1: 2}, custom_params={"x": []})
    same = SamplingParams(stop=["a"], logit_bias={"1": 2.0}, custom_params={"x": []})
    assert params == same
    assert hash(params) == hash(same)
    assert params != SamplingParams(stop="b", logit_bias={1: 2}, custom_params={"x": []})
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.top_k = 5
    with pytest.raises(TypeError):
        SamplingParams(128)


def test_replace_validates_again_and_keeps_the_rest():
    params = SamplingParams(stop=["a"], logit_bias={1: 2}, stop_token_ids=[4], seed=3)
    changed = dataclasses.replace(params, temperature=0.5)
    assert dataclasses.replace(changed, temperature=1.0) == params
    with pytest.raises(InvalidParameterError, match="top_p"):
        dataclasses.replace(params, top_p=2)


@pytest.mark.parametrize(
    ("values", "greedy"),
    [
        ({}, False),
        ({"temperature": 0}, True),
        ({"temperature": 9e-7}, True),
        ({"temperature": 1e-6}, False),
        ({"top_k": 1}, True),
        ({"top_k": 2, "temperature": 0.7}, False),
        ({"temperature": 0, "top_k": 40}, True),
        ({"temperature": 0, "top_k": 0}, True),
    ],
)
def test_greedy(values, greedy):
    assert SamplingParams(**values).is_greedy is greedy


def test_from_dict():
    values = {"temperature": 0.2, "stop": "x", "max_new_tokens": None}
    assert SamplingParams.from_dict(values) == SamplingParams(**values)
    assert SamplingParams.from_dict({}) == SamplingParams()
    with pytest.raises(UnknownOptionError, match=r"'temprature'.*Did you mean 'temperature'"):
        SamplingParams.from_dict({"temprature": 1})
    with pytest.raises(UnknownOptionError, match="sampling parameter '5'"):
        SamplingParams.from_dict({5: 1})
    with pytest.raises(InvalidParameterError, match="sampling_params"):
        SamplingParams.from_dict([("temperature", 1)])


def test_check_vocab():
    params = SamplingParams(stop_token_ids=[9], logit_bias={4: 1})
    params.check_vocab(10)
    with pytest.raises(InvalidParameterError, match="stop_token_ids names token id 9"):
        params.check_vocab(9)
    with pytest.raises(InvalidParameterError, match="logit_bias names token id 4"):
        dataclasses.replace(params, stop_token_ids=()).check_vocab(4)


def test_module_is_light():
    code = "import sys, rootlet.sampling.params, rootlet.sampling.seeds; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
