"""The real model in fp32 against transformers, in every setting that must not matter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hf_reference import greedy, log_softmax

import rootlet

NEW_TOKENS = 12
# 50 lengths from 1 to 2000, most of them short so that the reference is affordable
LENGTHS = [
    *range(1, 25),
    *range(26, 60, 3),
    64,
    72,
    81,
    96,
    110,
    128,
    150,
    190,
    256,
    300,
    511,
    640,
    1025,
    2000,
]


@pytest.fixture(scope="module")
def prompts(smollm2_dir):
    """Consecutive pieces of a real English text, as token ids; some share their beginning."""
    from rootlet.models.tokenizer import load_tokenizer

    text = (Path(rootlet.__file__).parent / "LICENSE").read_text()
    ids = load_tokenizer(str(smollm2_dir))(text)["input_ids"]
    pieces = []
    for i, length in enumerate(LENGTHS):
        start = 0 if i % 3 == 0 else 37 * i % (len(ids) - length)
        pieces.append(ids[start : start + length])
    assert len(pieces) == 50
    assert {len(p) for p in pieces} == set(LENGTHS)
    return pieces


@pytest.fixture(scope="module")
def ours(smollm2_dir, prompts):
    """Our continuations of all prompts with default options."""
    return run(smollm2_dir, prompts)[0]


@pytest.fixture(scope="module")
def expected(request, prompts, made_once):
    """transformers' greedy continuation of each prompt; ours are guesses, which make that faster."""

    def write(folder: Path) -> None:
        model, ours = request.getfixturevalue("hf_smollm2"), request.getfixturevalue("ours")
        tokens = [
            greedy(model, prompt, NEW_TOKENS, guess if i % 5 else ())
            for i, (prompt, guess) in enumerate(zip(prompts, ours))
        ]
        (folder / "tokens.json").write_text(json.dumps(tokens))

    return json.loads((made_once("parity", write) / "tokens.json").read_text())


def run(folder, prompts, *, batch_size=50, repeat=1, **options):
    options = {"dtype": "float32", "max_total_tokens": 12_000} | options
    params = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    with rootlet.Engine(str(folder), **options) as engine:
        for _ in range(repeat):
            outputs = []
            for first in range(0, len(prompts), batch_size):
                outputs += engine.generate(
                    input_ids=prompts[first : first + batch_size], sampling_params=params
                )
        return [list(output.token_ids) for output in outputs], outputs, engine.stats()


def test_all_prompts_continue_as_with_transformers(ours, expected):
    assert ours == expected


@pytest.mark.parametrize(
    "options",
    [
        {"page_size": 1, "disable_radix_cache": True, "shorter_than": 520, "every": 2},
        {"chunked_prefill_size": 7, "page_size": 1, "shorter_than": 200, "every": 3},
        {"chunked_prefill_size": 1, "shorter_than": 60, "every": 3},
        {"chunked_prefill_size": -1, "disable_overlap_schedule": False, "every": 3},
        {"batch_size": 1, "shorter_than": 520, "every": 4},
        {"repeat": 2, "shorter_than": 520, "every": 2},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()),
)
def test_greedy_tokens_equal_transformers(smollm2_dir, prompts, expected, options):
    options = dict(options)
    limit, every = options.pop("shorter_than", 10_000), options.pop("every", 1)
    chosen = [i for i, prompt in enumerate(prompts) if len(prompt) < limit][::-every]  # the longest always
    tokens, outputs, _ = run(smollm2_dir, [prompts[i] for i in chosen], **options)
    assert tokens == [expected[i] for i in chosen]
    if options.get("repeat"):
        assert [o.cached_tokens for o in outputs] == [len(prompts[i]) - 1 for i in chosen]


def test_preemption_does_not_change_greedy_tokens(smollm2_dir, prompts, expected):
    chosen = [i for i, prompt in enumerate(prompts) if len(prompt) < 200]
    tokens, _, stats = run(smollm2_dir, [prompts[i] for i in chosen], max_total_tokens=320)
    assert stats.num_preemptions > 0
    assert tokens == [expected[i] for i in chosen]


def test_logprobs_of_every_position_equal_transformers(smollm2_dir, hf_smollm2, prompts, expected):
    chosen = [i for i, prompt in enumerate(prompts) if len(prompt) in (1, 13, 59, 300, 1025)]
    with rootlet.Engine(str(smollm2_dir), dtype="float32", max_total_tokens=4000) as engine:
        for i in chosen:
            out = engine.generate(
                input_ids=prompts[i],
                sampling_params={"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True},
                return_logprob=True, logprob_start_len=0, top_logprobs_num=5,
            )  # fmt: skip
            ids = prompts[i] + expected[i]
            reference = log_softmax(hf_smollm2, ids)
            got = out.input_token_logprobs[1:] + out.output_token_logprobs
            assert [t[1] for t in got] == ids[1:]
            want = reference[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor([t[0] for t in got]), want, atol=1e-4, rtol=0)
            tops = out.input_top_logprobs[1:] + out.output_top_logprobs
            values = torch.tensor([[t[0] for t in top] for top in tops])
            torch.testing.assert_close(values, reference[:-1].topk(5).values, atol=1e-4, rtol=0)
