"""What a caller may ask for: shapes of calls and results, and everything that is refused."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

import rootlet
from rootlet.engine.config import EngineConfig
from rootlet.errors import (
    ConfigError,
    InvalidParameterError,
    InvalidRequestError,
    RequestTooLongError,
    UnknownOptionError,
)

GREEDY = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine(tiny_model):
    options = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_total_tokens": 320,
        "dtype": "float32",
    }
    with rootlet.Engine(tiny_model, **options) as engine:
        yield engine


@pytest.fixture(scope="module")
def bystander(engine):
    """What a neighbour generates undisturbed."""
    return engine.generate(input_ids=[1, 2, 3], sampling_params=GREEDY | {"max_new_tokens": 30}).token_ids


BAD_REQUESTS = [
    ({}, InvalidRequestError, "got none"),
    ({"prompt": "a", "input_ids": [1]}, InvalidRequestError, "got prompt and input_ids"),
    ({"prompt": "a"}, InvalidRequestError, "skip_tokenizer_init"),
    ({"prompt": 3}, InvalidRequestError, "prompt must be a string"),
    ({"input_ids": []}, InvalidRequestError, "empty"),
    ({"input_ids": [[1], []]}, InvalidRequestError, "prompt 1 of the batch"),
    ({"input_ids": [1, 300]}, InvalidRequestError, "outside the vocabulary"),
    ({"input_ids": [-1]}, InvalidRequestError, "outside the vocabulary"),
    ({"input_ids": [1.5]}, InvalidRequestError, "list of ints"),
    ({"input_ids": "12"}, InvalidRequestError, "list of ints"),
    ({"input_ids": [True]}, InvalidRequestError, "list of ints"),
    ({"input_ids": [1] * 512}, RequestTooLongError, "context length"),
    ({"input_ids": [1] * 400}, RequestTooLongError, "KV pool"),
    (
        {"input_ids": [1] * 300, "sampling_params": {"max_new_tokens": 300}},
        RequestTooLongError,
        "context length",
    ),
    ({"input_ids": [1] * 100, "sampling_params": {"max_new_tokens": 300}}, RequestTooLongError, "KV pool"),
    ({"input_ids": [1], "sampling_params": {"temprature": 1}}, UnknownOptionError, "'temperature'"),
    (
        {"input_ids": [1], "sampling_params": {"temperature": float("nan")}},
        InvalidParameterError,
        "temperature",
    ),
    ({"input_ids": [1], "sampling_params": {"temperature": "hot"}}, InvalidParameterError, "temperature"),
    ({"input_ids": [1], "sampling_params": {"top_p": 0}}, InvalidParameterError, "top_p"),
    ({"input_ids": [1], "sampling_params": "greedy"}, InvalidRequestError, "sampling_params must be"),
    ({"input_ids": [1], "sampling_params": [{}, {}]}, InvalidRequestError, "2 entries for 1"),
    ({"input_ids": [1], "sampling_params": {"stop": "x"}}, InvalidRequestError, "stop_token_ids"),
    ({"input_ids": [1], "sampling_params": {"regex": "a+"}}, InvalidRequestError, "needs a tokenizer"),
    ({"input_ids": [1], "sampling_params": {"logit_bias": {300: 1}}}, InvalidParameterError, "300"),
    (
        {"input_ids": [[1], [2]], "sampling_params": [{"n": 1}, {"n": 2}]},
        InvalidRequestError,
        "parallel_sample_num",
    ),
    ({"input_ids": [[1], [2]], "rid": "x"}, InvalidRequestError, "rid must be a list"),
    ({"input_ids": [[1], [2]], "rid": ["x", "x"]}, InvalidRequestError, "must not repeat"),
    ({"input_ids": [1], "rid": ""}, InvalidRequestError, "rid"),
    ({"input_ids": [1], "return_logprob": 1}, InvalidRequestError, "return_logprob"),
    ({"input_ids": [1], "top_logprobs_num": 2}, InvalidRequestError, "need return_logprob"),
    (
        {"input_ids": [1], "return_logprob": True, "logprob_start_len": 1},
        InvalidRequestError,
        "logprob_start_len",
    ),
    (
        {"input_ids": [1], "return_logprob": True, "top_logprobs_num": -1},
        InvalidRequestError,
        "top_logprobs_num",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_REQUESTS, ids=lambda v: str(v)[:50])
def test_bad_requests_are_refused_and_disturb_nobody(engine, bystander, call, error, message):
    handle = engine.submit(input_ids=[1, 2, 3], sampling_params=GREEDY | {"max_new_tokens": 30})
    with pytest.raises(error) as caught:
        engine.generate(**call)
    assert message in str(caught.value)
    assert isinstance(caught.value, (ValueError, TypeError))
    assert handle.result(30).token_ids == bystander


def test_an_unknown_argument_is_an_error(engine):
    with pytest.raises(TypeError, match="lora_path"):
        engine.generate(input_ids=[1], lora_path="x")


BAD_OPTIONS = [
    ({"max_runing_requests": 3}, UnknownOptionError, "max_running_requests"),
    ({"port": 30000}, UnknownOptionError, "server"),
    ({"log_level": "info"}, UnknownOptionError, "logging"),
    ({"page_size": 0}, ConfigError, "page_size"),
    ({"page_size": True}, ConfigError, "page_size"),
    ({"dtype": "int8"}, ConfigError, "dtype"),
    ({"schedule_policy": "best"}, ConfigError, "lpm"),
    ({"mem_fraction_static": 1.5}, ConfigError, "mem_fraction_static"),
    ({"cpu_offload_gb": -1}, ConfigError, "cpu_offload_gb must be a number of GiB, at least 0"),
    ({"cpu_offload_gb": float("nan")}, ConfigError, "got nan"),
    ({"cpu_offload_gb": float("inf")}, ConfigError, "got inf"),
    ({"cpu_offload_gb": "2"}, ConfigError, "cpu_offload_gb must be float, got str"),
    ({"cpu_offload_gb": 0.5, "device": "cpu"}, ConfigError, "cpu_offload_gb=0.5 moves weights from a GPU"),
    ({"max_total_tokens": 10, "kv_cache_bytes": 10}, ConfigError, "not both"),
    ({"chunked_prefill_size": 0}, ConfigError, "-1"),
    ({"context_length": 10_000}, ConfigError, "context_length"),
    ({"device": "gpu"}, ConfigError, "device"),
    ({"kv_cache_bytes": 1}, ConfigError, "kv_cache_bytes"),
    ({"random_seed": -1}, ConfigError, "random_seed"),
    ({"attention_backend": "triton", "device": "cpu"}, ConfigError, "'triton' needs a CUDA GPU"),
    ({"attention_backend": "flashinfer", "device": "cpu"}, ConfigError, "'flashinfer' needs a CUDA GPU"),
    ({"attention_backend": "flashinfer", "cuda_graph_max_bs": 8}, ConfigError, "cuda_graph_max_bs=8"),
    ({"attention_backend": "flash"}, ConfigError, "auto, torch, triton, flashinfer"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS, ids=lambda v: str(v)[:40])
def test_bad_options_are_refused(tiny_model, options, error, message):
    with pytest.raises(error) as caught:
        rootlet.Engine(tiny_model, **({"load_format": "dummy", "skip_tokenizer_init": True} | options))
    assert message in str(caught.value)


def test_a_missing_model_is_a_clear_error(tmp_path):
    with pytest.raises(rootlet.RootletError) as caught:
        rootlet.Engine(str(tmp_path / "nothing-here"))
    assert "nothing-here" in str(caught.value)
    with pytest.raises(ConfigError, match="model_path"):
        rootlet.Engine(None)


def test_every_option_has_help_and_is_reported(engine):
    info = engine.get_server_info()
    for option in dataclasses.fields(EngineConfig):
        assert option.metadata["help"]
        assert option.name in info
    assert info["status"] == "ready"
    assert info["max_total_num_tokens"] == 320


def test_shapes_of_calls_and_results(engine):
    one = engine.generate(input_ids=[4, 5], sampling_params=GREEDY)
    assert isinstance(one, rootlet.RequestOutput)
    assert engine.generate(input_ids=[[4, 5]], sampling_params=GREEDY)[0].token_ids == one.token_ids
    several = engine.generate(
        input_ids=[[4, 5], [6]], sampling_params=[GREEDY, GREEDY | {"max_new_tokens": 2}]
    )
    assert [o.completion_tokens for o in several] == [6, 2]
    assert [o.index for o in several] == [0, 1]
    samples = engine.generate(input_ids=[[4, 5], [6]], sampling_params=GREEDY | {"n": 3}, rid=["a", "b"])
    assert [o.rid for o in samples] == ["a-0", "a-1", "a-2", "b-0", "b-1", "b-2"]
    assert [o.index for o in samples] == list(range(6))
    assert {o.token_ids for o in samples[:3]} == {one.token_ids}
    siblings = engine.generate(input_ids=list(range(100, 140)), sampling_params=GREEDY | {"n": 3})
    assert sorted(o.cached_tokens for o in siblings) == [0, 39, 39]


def test_the_documented_dictionary(engine):
    out = engine.generate(
        input_ids=[4, 5, 6],
        sampling_params=GREEDY,
        return_logprob=True,
        top_logprobs_num=2,
        logprob_start_len=0,
    )
    assert out["token_ids"] == list(out.token_ids)
    assert "text" not in out
    meta = out["meta_info"]
    assert meta["id"] == out.rid
    assert meta["finish_reason"] == {"type": "length", "length": 6}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (3, 6)
    assert len(meta["input_token_logprobs"]) == 3
    assert meta["input_token_logprobs"][0] == (None, 4, None)
    assert meta["input_top_logprobs"][0] is None
    assert len(meta["output_token_logprobs"]) == len(meta["output_top_logprobs"]) == 6
    for triple, top in zip(meta["output_token_logprobs"], meta["output_top_logprobs"]):
        assert len(top) == 2
        assert triple == top[0]
    assert set(out.as_dict()) == {"token_ids", "meta_info"}
    with pytest.raises(KeyError):
        out["nothing"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        out.rid = "x"


def test_logprob_start_len_rules(engine):
    prompt = [4, 5, 6, 7, 8]
    for start, length in ((None, 0), (-1, 0), (0, 5), (1, 4), (4, 1)):
        out = engine.generate(
            input_ids=prompt, sampling_params=GREEDY, return_logprob=True, logprob_start_len=start
        )
        assert len(out.input_token_logprobs) == length
    mixed = engine.generate(input_ids=[prompt, prompt], sampling_params=GREEDY, return_logprob=[True, False])
    assert mixed[0].output_token_logprobs is not None
    assert mixed[1].output_token_logprobs is None


@pytest.mark.parametrize("options", [{}, {"chunked_prefill_size": 7}], ids=["whole", "chunks"])
def test_prompt_logprobs_from_anywhere_are_those_from_the_beginning(tiny_model, options):
    """Whatever is cached: each start finds more of the prompt in the cache, up to the token it needs."""
    prompt = list(range(30, 50))
    options = {"load_format": "dummy", "skip_tokenizer_init": True, "dtype": "float32", **options}
    with rootlet.Engine(tiny_model, **options) as engine:

        def scored(start):
            return engine.generate(
                input_ids=prompt, sampling_params=GREEDY, return_logprob=True, logprob_start_len=start,
                top_logprobs_num=2,
            )  # fmt: skip

        whole = scored(0)
        assert [token for _, token, _ in whole.input_token_logprobs] == prompt
        assert [lp is None for lp, _, _ in whole.input_token_logprobs] == [True] + [False] * 19
        for start in range(1, 20):
            part = scored(start)
            assert part.cached_tokens == start - 1
            assert [token for _, token, _ in part.input_token_logprobs] == prompt[start:]
            for name in ("input_token_logprobs", "input_top_logprobs"):
                got, want = getattr(part, name), getattr(whole, name)[start:]
                assert len(got) == 20 - start
                flat = [[pair[0] for pair in (one if isinstance(one, list) else [one])] for one in got]
                expected = [[pair[0] for pair in (one if isinstance(one, list) else [one])] for one in want]
                assert flat == [pytest.approx(one, abs=1e-4) for one in expected]
        [score] = engine.score(prompt[:12], [prompt[12:]])
        expected = [lp for lp, _, _ in whole.input_token_logprobs[12:]]
        assert score.token_logprobs == pytest.approx(expected, abs=1e-4)
        assert score.token_ids == tuple(prompt[12:])


def test_streams_are_cumulative_and_end_like_the_plain_call(engine):
    prompts = [[4, 5], [6], [7, 8, 9]]
    plain = engine.generate(input_ids=prompts, sampling_params=GREEDY)
    seen = {0: [], 1: [], 2: []}
    for chunk in engine.generate(input_ids=prompts, sampling_params=GREEDY, stream=True):
        seen[chunk["index"]].append(chunk)
    for i, chunks in seen.items():
        assert [c.finish_reason is None for c in chunks] == [True] * (len(chunks) - 1) + [False]
        assert chunks[-1].token_ids == plain[i].token_ids
        assert all(b.token_ids[: len(a.token_ids)] == a.token_ids for a, b in itertools.pairwise(chunks))


def test_a_seed_fixes_the_tokens_whatever_the_batch(engine):
    params = {"temperature": 1.0, "max_new_tokens": 10, "seed": 7, "ignore_eos": True}
    alone = engine.generate(input_ids=[4, 5], sampling_params=params)
    crowd = engine.generate(
        input_ids=[[9, 9, i] for i in range(5)] + [[4, 5]],
        sampling_params=[{"temperature": 0.7, "max_new_tokens": 10}] * 5 + [params],
    )
    assert crowd[-1].token_ids == alone.token_ids
    samples = engine.generate(input_ids=[4, 5], sampling_params=params | {"n": 4})
    assert samples[0].token_ids == alone.token_ids
    assert len({o.token_ids for o in samples}) == 4


def test_random_seed_repeats_unseeded_sampling(tiny_model):
    def run(seed):
        options = {"load_format": "dummy", "skip_tokenizer_init": True, "max_total_tokens": 320}
        with rootlet.Engine(tiny_model, random_seed=seed, **options) as engine:
            return [
                o.token_ids
                for o in engine.generate(input_ids=[[1], [2], [3]], sampling_params={"max_new_tokens": 9})
            ]

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_filling_the_context(engine, tiny_model):
    out = engine.generate(input_ids=[3] * 20, sampling_params={"max_new_tokens": None, "ignore_eos": True})
    assert out.completion_tokens == 320 - 20 + 1  # the pool; the last token's KV is never needed
    options = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_total_tokens": 600,
        "context_length": 64,
    }
    with rootlet.Engine(tiny_model, **options) as small:
        out = small.generate(input_ids=[3] * 20, sampling_params={"max_new_tokens": None, "ignore_eos": True})
        assert out.completion_tokens == 44


def test_a_repeated_prompt_is_cached_but_for_one_token(engine):
    prompt = list(range(40, 90))
    engine.generate(input_ids=prompt, sampling_params=GREEDY)
    assert engine.generate(input_ids=prompt, sampling_params=GREEDY).cached_tokens == 49
    assert engine.flush_cache()
    assert engine.generate(input_ids=prompt, sampling_params=GREEDY).cached_tokens == 0


def test_stats_count(tiny_model):
    options = {"load_format": "dummy", "skip_tokenizer_init": True, "max_total_tokens": 320}
    with rootlet.Engine(tiny_model, **options) as engine:
        engine.generate(input_ids=[[1, 2, 3]] * 2, sampling_params=GREEDY)
        stats = engine.stats()
        assert stats.num_finished == 2
        assert stats.num_generated_tokens == 12
        assert stats.num_prompt_tokens_cached + stats.num_prompt_tokens_computed == 6
        assert stats.token_usage == 0
        assert 0 <= stats.cache_hit_rate < 1
        assert stats.num_running == stats.num_waiting == 0
