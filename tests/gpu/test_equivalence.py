"""Settings that must not matter, on tiny models in fp32: the same tokens whatever they are."""

from __future__ import annotations

import pytest

from .tiny import build, generate, logit_gaps, reference, requests, saved

FAMILIES = ["llama", "mistral-window", "qwen2"]
OPTIONS = [
    {"disable_cuda_graph": True},
    {"disable_overlap_schedule": True},
    {"disable_cuda_graph": True, "disable_overlap_schedule": True},
    {"cuda_graph_max_bs": 3},
    {"disable_radix_cache": True},
    {"disable_radix_cache": True, "disable_cuda_graph": True},
    {"chunked_prefill_size": 7},
    {"chunked_prefill_size": 64},
    {"chunked_prefill_size": -1},
    {"page_size": 1},
    {"page_size": 1, "disable_cuda_graph": True, "disable_overlap_schedule": True},
    {"page_size": 64},
    {"batch_size": 1},
    {"batch_size": 5, "page_size": 64},
    {"max_running_requests": 5},
    {"repeat": 2},
    {"repeat": 2, "page_size": 1},
    {"disable_shared_prefix_attention": True},
    {"disable_shared_prefix_attention": True, "disable_cuda_graph": True},
    {"attention_backend": "torch"},
    {"attention_backend": "triton"},
    {"attention_backend": "triton", "page_size": 1, "chunked_prefill_size": 33},
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return saved(family, tmp_path_factory.mktemp("equivalence"))


@pytest.fixture(scope="module")
def expected(folder):
    """Tokens of the default settings."""
    with build(folder) as engine:
        return generate(engine, *requests())


def test_the_defaults_say_what_transformers_says(family, expected):
    """Near ties apart: 1e-3 is a hundred times what fp32 sums differ by."""
    prompts, lengths = requests()
    assert [len(tokens) for tokens in expected] == lengths
    assert len({token for tokens in expected for token in tokens}) > 20  # no model that repeats itself
    for prompt, tokens in zip(prompts, expected):
        assert logit_gaps(reference(family), prompt, tokens).max() < 1e-3


@pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items())
)
def test_the_same_tokens(folder, expected, options):
    settings = {k: v for k, v in options.items() if k not in ("batch_size", "repeat")}
    prompts, lengths = requests()
    with build(folder, **settings) as engine:
        for _ in range(options.get("repeat", 1)):
            tokens = generate(engine, prompts, lengths, batch_size=options.get("batch_size"))
            assert tokens == expected


@pytest.mark.parametrize("options", [{}, {"disable_cuda_graph": True}, {"disable_overlap_schedule": True}])
def test_preemption_changes_no_token(folder, expected, options):
    """Room for little more than the longest request; most run, lose their pages and are computed again."""
    with build(folder, max_total_tokens=640, **options) as engine:
        assert generate(engine, *requests()) == expected
        assert engine.stats().num_preemptions > 0


def test_latecomers_change_no_token(folder, expected):
    """Each request joins while the others decode: steps that mix prefill and decode, batches that grow."""
    prompts, lengths = requests()
    with build(folder) as engine:
        handles = []
        for prompt, length in zip(prompts, lengths):
            params = {"temperature": 0, "max_new_tokens": length, "ignore_eos": True}
            handles.append(engine.submit(input_ids=prompt, sampling_params=params, stream=False))
            engine.stats()  # answered between two steps
        assert [list(handle.result(60).token_ids) for handle in handles] == expected


def test_aborted_neighbours_change_no_token(folder, expected):
    prompts, lengths = requests()
    with build(folder) as engine:
        doomed = [
            engine.submit(
                input_ids=prompt[: len(prompt) // 2 + 1],
                sampling_params={"temperature": 0, "max_new_tokens": 400, "ignore_eos": True},
            )
            for prompt in prompts[::3]
        ]
        handles = [
            engine.submit(
                input_ids=prompt,
                sampling_params={"temperature": 0, "max_new_tokens": length, "ignore_eos": True},
            )
            for prompt, length in zip(prompts, lengths)
        ]
        for handle in doomed:
            handle.abort()
        assert [list(handle.result(60).token_ids) for handle in handles] == expected


def test_driven_by_hand(folder, expected):
    with build(folder, step_by_hand=True) as engine:
        assert generate(engine, *requests()) == expected


def test_requests_up_to_the_end_of_the_context(folder, family):
    """The last position of the last page, in prefill and in decode."""
    from .tiny import CONTEXT, random_prompt

    prompts = [random_prompt(CONTEXT - n, n) for n in (1, 2, 30)]
    with build(folder) as engine:
        tokens = generate(engine, prompts, [1, 2, 30])
    for prompt, output in zip(prompts, tokens):
        assert logit_gaps(reference(family), prompt, output).max() < 1e-3
