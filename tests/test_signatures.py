"""Unknown argument names: a suggestion, and signatures that tools still read."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect

import pytest

import rootlet
from rootlet.engine.config import EngineConfig
from rootlet.engine.options import EngineOptions
from rootlet.errors import UnknownOptionError
from rootlet.signatures import suggest_names

CALLS = [
    (rootlet.Engine.generate, "promt", "Did you mean 'prompt'"),
    (rootlet.Engine.generate, "temperature", "pass sampling_params={'temperature': ...}"),
    (rootlet.Engine.generate, "logprob_of", "Did you mean 'logprobs_of'"),
    (rootlet.Engine.submit, "continues_from", "Did you mean 'continue_from'"),
    (rootlet.Engine.async_generate, "return_logprobs", "Did you mean 'return_logprob'"),
    (rootlet.Engine.submit, "max_new_tokens", "sampling_params"),
    (rootlet.Engine.chat, "tool", "Did you mean 'tools'"),
    (rootlet.Engine.async_chat, "messges", "Did you mean 'messages'"),
    (rootlet.Engine.score, "continuation", "Did you mean 'continuations'"),
    (rootlet.Engine.async_score, "prompt", "Did you mean 'prompts'"),
    (rootlet.Engine.encode, "inputids", "Did you mean 'input_ids'"),
    (rootlet.Engine.async_encode, "inputids", "Did you mean 'input_ids'"),
    (rootlet.Engine.classify, "promt", "Did you mean 'prompt'"),
    (rootlet.Engine.async_classify, "promt", "Did you mean 'prompt'"),
    (rootlet.run_jobs, "sampling_param", "Did you mean 'sampling_params'"),
    (rootlet.stream_and_merge, "sampling_parms", "Did you mean 'sampling_params'"),
    (rootlet.align, "dtyp", "Did you mean 'dtype'"),
    (rootlet.token_logprobs, "attention_msk", "Did you mean 'attention_mask'"),
    (rootlet.SamplingParams.__init__, "temprature", "Did you mean 'temperature'"),
]


@pytest.mark.parametrize(
    ("function", "name", "hint"), CALLS, ids=lambda value: getattr(value, "__qualname__", value)
)
def test_an_unknown_name_gets_a_suggestion(function, name, hint):
    def call():
        result = function(None, **{name: 1})
        asyncio.run(result)  # of a coroutine function

    with pytest.raises(TypeError) as caught:
        call()
    assert isinstance(caught.value, UnknownOptionError)
    assert repr(name) in str(caught.value)
    assert hint in str(caught.value)


def test_signatures_stay():
    names = list(inspect.signature(rootlet.Engine.generate).parameters)
    assert names[:4] == ["self", "prompt", "sampling_params", "input_ids"]
    assert inspect.iscoroutinefunction(rootlet.Engine.async_generate)
    assert not inspect.iscoroutinefunction(rootlet.Engine.generate)
    assert "temperature" in inspect.signature(rootlet.SamplingParams).parameters
    assert "bar that counts" in inspect.getdoc(rootlet.Engine.generate)


def test_positional_only_names_may_be_anything():
    @suggest_names()
    def function(a, /, b, *, c=1):
        return a, b, c

    assert function(1, b=2) == (1, 2, 1)
    with pytest.raises(UnknownOptionError, match="Unknown argument 'a'"):
        function(1, 2, a=3)


def test_options_are_typed_as_they_are_checked():
    """Checkers read names and types of options in one place, the engine in another; paths may be Paths."""
    typed = {name: hint.__forward_arg__ for name, hint in EngineOptions.__annotations__.items()}
    checked = {field.name: field.type for field in dataclasses.fields(EngineConfig)}
    del checked["model_path"]
    paths = {name for name, hint in typed.items() if hint == "Place"}
    assert paths == {"chat_template", "download_dir", "tokenizer_path"}
    assert typed == checked | dict.fromkeys(paths, "Place")
    assert {checked[name] for name in paths} == {"str | None"}
