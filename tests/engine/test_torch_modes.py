"""Whatever the host has set in torch, results are the same bits: set before, at a call, between tokens."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import rootlet

IDS = [5, 9, 200, 44, 7, 7]
SAMPLED = {
    "temperature": 0.9,
    "top_p": 0.9,
    "top_k": 50,
    "min_p": 0.01,
    "seed": 5,
    "max_new_tokens": 8,
    "min_new_tokens": 4,
    "frequency_penalty": 0.3,
    "repetition_penalty": 1.2,
    "logit_bias": {7: 1.5},
}
PLAIN = {"temperature": 1.1, "seed": 7, "max_new_tokens": 8, "ignore_eos": True}
LOGPROBS = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 3}
EMBEDS = [[((i * 7 + j) % 13) / 17 for j in range(64)] for i in range(4)]


class NoFunctions(TorchFunctionMode):
    """Lets nothing through."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} was called in the caller's mode")


class NoOperations(TorchDispatchMode):
    """Lets nothing through."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} was called in the caller's mode")


@contextlib.contextmanager
def reset(change, undo):
    change()
    try:
        yield
    finally:
        undo()


def dtype(wanted):
    return lambda: reset(
        lambda: torch.set_default_dtype(wanted), lambda: torch.set_default_dtype(torch.float32)
    )


def tensor_type():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_default_tensor_type(torch.DoubleTensor)


def deterministic(warn_only):
    return lambda: reset(
        lambda: torch.use_deterministic_algorithms(True, warn_only=warn_only),
        lambda: torch.use_deterministic_algorithms(False),
    )


PROCESS = {
    "float16": dtype(torch.float16),
    "bfloat16": dtype(torch.bfloat16),
    "float64": dtype(torch.float64),
    "tensor type": lambda: reset(tensor_type, lambda: torch.set_default_dtype(torch.float32)),
    "deterministic": deterministic(False),
    "warn_only": deterministic(True),
    "anomaly": lambda: torch.autograd.detect_anomaly(check_nan=True),
    "flush_denormal": lambda: reset(
        lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False)
    ),
}
THREAD = {
    "default device": lambda: reset(
        lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)
    ),
    "device block": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
}
WATCHING = {"fake": FakeTensorMode, "functions": NoFunctions, "operations": NoOperations}


def build(model, **options):
    return rootlet.Engine(model, load_format="dummy", dtype="float32", max_total_tokens=2048, **options)


def answers(engine):
    """Everything that computes, without what earlier answers left in the prefix cache."""
    engine.flush_cache()
    return [
        engine.generate(input_ids=IDS, sampling_params=SAMPLED, **LOGPROBS),
        engine.generate(input_ids=IDS, sampling_params=PLAIN, return_logprob=True),
        engine.generate(input_ids=IDS, sampling_params=PLAIN, return_hidden_states=True),
        engine.generate(input_embeds=EMBEDS, sampling_params=PLAIN, return_logprob=True),
        engine.generate("ab", {"temperature": 0, "choice": ["yes", "no"]}, return_logprob=True),
        *engine.score("the quick", [" brown", " fox"]),
    ]


def plain(outputs):
    """All bits of the answers, to be compared."""
    *outs, first, second = outputs
    assert {state.dtype for state in outs[2].hidden_states} == {torch.float32}
    states = [state.view(torch.int32).tolist() for state in outs[2].hidden_states]
    differ = {"id": None, "timing": None, "hidden_states": None}
    return [(out.text, out.token_ids, out.meta_info | differ) for out in outs], states, first, second


@pytest.fixture(scope="module")
def engine(tiny_text_model):
    with build(tiny_text_model) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(engine):
    return plain(answers(engine))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("mode", (PROCESS | THREAD | WATCHING).values(), ids=PROCESS | THREAD | WATCHING)
def test_no_setting_of_the_host_changes_a_result(engine, expected, tiny_text_model, mode):
    stream = engine.generate(input_ids=IDS, sampling_params=SAMPLED, stream=True, **LOGPROBS)
    last = next(stream)
    with mode():
        for last in stream:  # noqa: B007  its last value is wanted
            pass
        found = answers(engine)
        inside = build(tiny_text_model)
    with inside:
        built = plain(answers(inside))
    assert plain(found) == expected
    assert built == expected
    assert last.output_token_logprobs == expected[0][0][2]["output_token_logprobs"]


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("mode", (PROCESS | THREAD).values(), ids=PROCESS | THREAD)
def test_nor_where_the_engine_is_driven_by_hand(expected, by_hand, mode):
    with mode():
        found = answers(by_hand)
    assert plain(found) == expected


@pytest.fixture(scope="module")
def by_hand(tiny_text_model):
    with build(tiny_text_model, step_by_hand=True) as engine:
        yield engine


@pytest.mark.parametrize("wanted", [torch.float16, torch.float64])
def test_embeddings_are_the_same(tiny_text_model, wanted):
    with build(tiny_text_model, is_embedding=True) as engine:
        vector = engine.encode("the quick brown fox")["embedding"]
        engine.flush_cache()
        with dtype(wanted)():
            assert engine.encode("the quick brown fox")["embedding"] == vector
