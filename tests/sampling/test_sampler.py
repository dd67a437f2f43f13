"""The whole sampler: rows do not see each other, stages compose, nothing outside is touched."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from rootlet.sampling.sampler import SampleOutput, Sampler, SamplingBatch

KINDS = [
    {"temperature": 0},
    {},
    {"temperature": 0.7},
    {"top_p": 0.9},
    {"top_p": 0.97, "temperature": 2.5},
    {"top_k": 20},
    {"min_p": 0.05},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.02, "temperature": 1.5},
    {"frequency_penalty": 0.6, "presence_penalty": -0.4, "top_p": 0.8},
    {"repetition_penalty": 1.3, "temperature": 0},
    {"logit_bias": {3: 5.0, 700: -100.0}},
    {"min_new_tokens": 4, "top_k": 5},
]


def mixed_batch(row, vocab, size=30):
    """``size`` rows of all kinds, every other one asking for log-probabilities, with tokens behind them."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(size, vocab, generator=generator) * 4
    logits[::4] = logits[::4].bfloat16().float()  # ties, as bf16 models produce them
    tokens = torch.randint(0, vocab, (size + 1, 40), generator=generator, dtype=torch.int32)
    tokens[:, ::2] %= 50
    rows = [
        row(
            seed=i * 7,
            slot=i + 1,
            prompt_len=3 + i % 5,
            banned=(2, 9),
            logprobs=i % 2 == 0,
            top_logprobs=i % 3,
            **KINDS[i % len(KINDS)],
        )
        for i in range(size)
    ]
    positions = torch.tensor([r.prompt_len + i % 9 for i, r in enumerate(rows)])
    return logits, rows, positions, tokens


def assert_same_rows(got: SampleOutput, wanted: SampleOutput, index: list[int], rows) -> None:
    """Row i of ``got`` is bit for bit row ``index[i]`` of ``wanted``."""
    for i, j in enumerate(index):
        assert got.token_ids[i] == wanted.token_ids[j]
        if not rows[j].logprobs:
            continue
        assert got.logprobs[i] == wanted.logprobs[j]
        if width := rows[j].top_logprobs:
            assert torch.equal(got.top_ids[i, :width], wanted.top_ids[j, :width])
            assert torch.equal(got.top_values[i, :width], wanted.top_values[j, :width])


@pytest.mark.parametrize("vocab", [800, 5003])
def test_a_row_does_not_depend_on_its_batch(sample, row, vocab):
    """Permuted, repeated, alone or in part: the same tokens and log-probabilities, bit for bit."""
    logits, rows, positions, tokens = mixed_batch(row, vocab)
    whole = sample(logits, rows, positions, tokens)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    for index in (order, [5] * 40 + order, order[:7], *([i] for i in range(len(rows)))):
        part = sample(logits[index], [rows[i] for i in index], positions[index], tokens)
        assert_same_rows(part, whole, index, rows)


@pytest.fixture
def threads():
    """``torch.set_num_threads`` for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_row_does_not_depend_on_its_batch_at_full_width(sample, row, threads):
    """The same at a real vocabulary, on any number of threads: torch's sum over one row of more than 32768
    numbers is spread over threads and adds in another order than over many rows, and must not be used."""
    vocab, size = 49_152, 64
    logits, rows, positions, tokens = mixed_batch(row, vocab, size)
    generator = torch.Generator().manual_seed(5)
    mask = torch.randint(-(2**31), 2**31 - 1, (size, vocab // 32), generator=generator).int()
    mask[::2] = -1
    threads(1)
    whole = sample(logits, rows, positions, tokens, mask)
    order = torch.randperm(size, generator=generator).tolist()
    for count in (1, 2):
        threads(count)
        for index in (order, order[:17], *([i, j, 5] for i, j in zip(range(12), order)), [3, 40]):
            part = sample(logits[index], [rows[i] for i in index], positions[index], tokens, mask[index])
            assert_same_rows(part, whole, index, rows)
        for i in range(len(KINDS)):  # of every kind one alone
            part = sample(logits[i : i + 1], rows[i : i + 1], positions[i : i + 1], tokens, mask[i : i + 1])
            assert_same_rows(part, whole, [i], rows)


def test_reproducible_by_seed_and_position(sample, row):
    """Same seed and position, same token, in a fresh sampler or a used one; others differ."""
    logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0)).repeat(200, 1)
    positions = torch.arange(200)
    tokens = torch.zeros(2, 4, dtype=torch.int32)
    batch = SamplingBatch.build([row(seed=5)] * 200, 1000, "cpu")
    sampler = Sampler(1000, "cpu")
    first = sampler.sample(logits, batch, positions, tokens).token_ids
    assert torch.equal(sampler.sample(logits, batch, positions, tokens).token_ids, first)
    assert torch.equal(sample(logits, [row(seed=5)] * 200, positions, tokens).token_ids, first)
    shifted = sampler.sample(logits, batch, positions + 1, tokens).token_ids
    assert torch.equal(shifted[:-1], first[1:])
    assert len(set(first.tolist())) > 100
    assert not torch.equal(sample(logits, [row(seed=6)] * 200, positions, tokens).token_ids, first)


@pytest.mark.parametrize("vocab", [128, 640, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_lowest_of_equal_ids(sample, row, vocab, dtype):
    logits = torch.randint(0, 4, (64, vocab), generator=torch.Generator().manual_seed(vocab)).to(dtype)
    first_maximum = torch.from_numpy(logits.float().numpy().argmax(1))  # numpy documents the first one
    for params in ({"temperature": 0}, {"top_k": 1, "temperature": 0.7}):
        assert torch.equal(sample(logits, [row(**params)] * 64).token_ids, first_maximum)
    alone = [sample(logits[i : i + 1], [row(temperature=0)]).token_ids for i in range(64)]
    assert torch.equal(torch.cat(alone), first_maximum)


def test_half_precision_logits_are_widened_first(sample, row):
    logits, rows, positions, tokens = mixed_batch(row, 800)
    for dtype in (torch.bfloat16, torch.float16):
        narrow = logits.to(dtype)
        got = sample(narrow, rows, positions, tokens)
        assert_same_rows(got, sample(narrow.float(), rows, positions, tokens), list(range(30)), rows)


def test_nan_in_one_row_leaves_the_others_alone(sample, row):
    """Whatever the row asks for; its own token is still a token."""
    logits, rows, positions, tokens = mixed_batch(row, 800, size=len(KINDS))
    whole = sample(logits, rows, positions, tokens)
    for bad in range(len(rows)):
        for value in (torch.nan, torch.inf, -torch.inf):
            broken = logits.clone()
            broken[bad] = value
            got = sample(broken, rows, positions, tokens)
            others = [i for i in range(len(rows)) if i != bad]
            assert torch.equal(got.token_ids[others], whole.token_ids[others])
            asking = [i for i in others if rows[i].logprobs]
            assert torch.equal(got.logprobs[asking], whole.logprobs[asking])
            assert 0 <= got.token_ids[bad] < 800


def test_inputs_and_global_generators_are_left_alone(sample, row):
    logits, rows, positions, tokens = mixed_batch(row, 800)
    copies = logits.clone(), positions.clone(), tokens.clone()
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    sample(logits, rows, positions, tokens, torch.full((30, 25), -1, dtype=torch.int32))
    assert all(torch.equal(a, b) for a, b in zip(copies, (logits, positions, tokens)))
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])


def test_outputs_survive_the_next_step(sample, row):
    """Results are the caller's own, not views of buffers that the next step overwrites."""
    logits, rows, positions, tokens = mixed_batch(row, 800)
    sampler, batch = Sampler(800, "cpu"), SamplingBatch.build(rows, 800, "cpu")
    first = sampler.sample(logits, batch, positions, tokens)
    fields = [x.clone() for x in (first.token_ids, first.logprobs, first.top_values, first.top_ids)]
    sampler.sample(-logits, batch, positions, tokens)
    now = (first.token_ids, first.logprobs, first.top_values, first.top_ids)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(fields, now))


def test_allowed_mask(sample, row):
    """Forbidden tokens never appear, in any kind of row, even if allowed ones are hopeless otherwise."""
    logits, rows, positions, tokens = mixed_batch(row, 803)
    allowed = torch.rand(30, 803, generator=torch.Generator().manual_seed(3)) < 0.01
    allowed[:, 802] = True
    logits[allowed] -= 50
    words = np.packbits(np.pad(allowed.numpy(), ((0, 0), (0, -803 % 32))), axis=1, bitorder="little")
    mask = torch.from_numpy(words.view(np.int32).copy())
    for step in range(20):
        got = sample(logits, rows, positions + step, tokens, mask)
        assert bool(allowed.gather(1, got.token_ids.unsqueeze(1)).all())
    everything = torch.full_like(mask, -1)
    free = sample(logits, rows, positions, tokens, everything)
    assert_same_rows(free, sample(logits, rows, positions, tokens), list(range(30)), rows)


def test_extreme_temperatures(sample, row):
    """Almost 0 is greedy, almost infinite is uniform over what is not banned."""
    logits = torch.randn(400, 50, generator=torch.Generator().manual_seed(0)) * 3
    logits[:, 7] = -torch.inf
    positions = torch.arange(400)
    cold = sample(logits, [row(temperature=2e-6)] * 400, positions).token_ids
    assert torch.equal(cold, logits.argmax(1))
    hot = sample(logits, [row(temperature=1e300)] * 400, positions).token_ids
    assert set(hot.tolist()) == set(range(50)) - {7}


def test_tiny_vocabularies_and_empty_rules(sample, row):
    """One token, and rules wider than the vocabulary."""
    for params in KINDS[:4] + [{"top_k": 100}, {"top_k": 100, "top_p": 0.5}]:
        got = sample(torch.randn(3, 1), [row(logprobs=True, top_logprobs=5, **params)] * 3)
        assert got.token_ids.tolist() == [0, 0, 0]
        assert got.top_ids.tolist() == [[0]] * 3
        assert got.logprobs.tolist() == [0.0] * 3
