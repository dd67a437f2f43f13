"""The sampler on Triton kernels against the one in torch: on the GPU if there is one, else interpreted."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("supported_triton")

from rootlet.sampling.batch import FILTERED, GREEDY, GREEDY_WITH_TOTAL, PLAIN
from rootlet.sampling.rows import all_argmax
from rootlet.sampling.sampler import Sampler, SamplingBatch
from rootlet.sampling.upload import upload

KINDS = [
    {"temperature": 0},
    {"temperature": 0.7},
    {"top_p": 0.9},
    {"top_k": 20, "temperature": 2.5},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.02, "temperature": 1.5},
    {"frequency_penalty": 0.6, "presence_penalty": -0.4},
    {"repetition_penalty": 1.3, "temperature": 0},
    {"logit_bias": {3: 5.0, 290: -100.0}, "min_new_tokens": 4, "min_p": 0.1},
]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mixed_batch(row, vocab, size=8):
    """Rows of all kinds, some of which ask for log-probabilities, with tokens behind them."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(size, vocab, generator=generator) * 4
    tokens = torch.randint(0, vocab, (size + 1, 40), generator=generator, dtype=torch.int32)
    rows = [
        row(
            seed=i * 7,
            slot=i + 1,
            prompt_len=3 + i % 5,
            banned=(2, 9),
            logprobs=i % 3 != 1,
            top_logprobs=i % 3,
            **KINDS[i % len(KINDS)],
        )
        for i in range(size)
    ]
    positions = torch.tensor([r.prompt_len + i % 9 for i, r in enumerate(rows)])
    return logits, rows, positions, tokens


def run_fused(device, logits, rows, positions, tokens, allowed_mask=None):
    batch = SamplingBatch.build(rows, logits.shape[1], device)
    mask = None if allowed_mask is None else allowed_mask.to(device)
    out = Sampler(logits.shape[1], device, fused=True).sample(
        logits.to(device), batch, positions.to(device), tokens.to(device), mask
    )
    return type(out)(*(None if x is None else x.cpu() for x in dataclasses.astuple(out)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_tokens_and_logprobs(sample, row, device, dtype):
    """All stages at once, with a grammar mask in one case. Same tokens (the random numbers are fixed and none
    falls within rounding of a boundary); log-probabilities within 1e-5, relative and absolute."""
    logits, rows, positions, tokens = mixed_batch(row, 811)
    logits = logits.to(dtype)
    mask = None
    if dtype == torch.float32:
        mask = torch.randint(-(2**31), 2**31, (8, 26), generator=torch.Generator().manual_seed(1)).int()
    got = run_fused(device, logits, rows, positions, tokens, mask)
    wanted = sample(logits, rows, positions, tokens, mask)
    assert torch.equal(got.token_ids, wanted.token_ids)
    torch.testing.assert_close(got.logprobs, wanted.logprobs, rtol=1e-5, atol=1e-5, equal_nan=True)
    for i, r in enumerate(rows):
        if r.logprobs and r.top_logprobs:
            width = r.top_logprobs
            torch.testing.assert_close(
                got.top_values[i, :width], wanted.top_values[i, :width], rtol=1e-5, atol=1e-5
            )
            if dtype == torch.float32:  # bf16 logits tie
                assert torch.equal(got.top_ids[i, :width], wanted.top_ids[i, :width])


def test_a_row_does_not_depend_on_its_batch(row, device):
    """In part or alone: bit for bit the same."""
    logits, rows, positions, tokens = mixed_batch(row, 523)
    whole = run_fused(device, logits, rows, positions, tokens)
    singles = range(8) if device.type == "cuda" else (2,)
    for index in ([4, 1, 0], *([i] for i in singles)):
        part = run_fused(device, logits[index], [rows[i] for i in index], positions[index], tokens)
        assert torch.equal(part.token_ids, whole.token_ids[index])
        for at, i in enumerate(index):
            if not rows[i].logprobs:
                continue
            assert part.logprobs[at] == whole.logprobs[i]
            if width := rows[i].top_logprobs:
                assert torch.equal(part.top_values[at, :width], whole.top_values[i, :width])
                assert torch.equal(part.top_ids[at, :width], whole.top_ids[i, :width])


def test_the_callers_tensors_are_left_alone(row, device):
    logits, _, positions, tokens = mixed_batch(row, 300, size=2)
    there = [x.to(device) for x in (logits, positions, tokens)]
    rows = [row(repetition_penalty=2.0), row()]
    batch = SamplingBatch.build(rows, 300, device)
    Sampler(300, device, fused=True).sample(there[0], batch, there[1], there[2])
    assert all(torch.equal(a.cpu(), b) for a, b in zip(there, (logits, positions, tokens)))


def test_kinds(row):
    rows = [row(temperature=0), row(temperature=0, logprobs=True), row(), row(top_k=3), row(top_k=999)]
    batch = SamplingBatch.build(rows, 300, "cpu")
    assert batch.kinds.tolist() == [GREEDY, GREEDY_WITH_TOTAL, PLAIN, FILTERED, PLAIN]


@pytest.mark.parametrize(
    ("asked", "argmax"),
    [
        ({"temperature": 0}, True),
        ({"top_k": 1}, True),
        ({}, False),
        ({"temperature": 0, "logprobs": True}, False),
        ({"temperature": 0, "presence_penalty": 0.1}, False),
        ({"temperature": 0, "repetition_penalty": 0.9}, False),
        ({"temperature": 0, "logit_bias": {3: 1.0}}, False),
        ({"temperature": 0, "min_new_tokens": 2, "banned": (4,)}, False),
    ],
)
def test_rows_that_want_an_argmax(row, asked, argmax):
    assert row(**asked).is_argmax == argmax
    assert all_argmax([row(**asked), row(temperature=0)]) == argmax


def tensors_of(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if not dataclasses.is_dataclass(value):
        return []
    return [t for field in dataclasses.fields(value) for t in tensors_of(getattr(value, field.name))]


def test_upload_is_one_copy_of_everything(row):
    """Same values, dtypes and shapes; one buffer, every tensor at a multiple of 16 bytes."""
    _, rows, _, _ = mixed_batch(row, 800)
    batch = SamplingBatch.build(rows, 800, "cpu")
    moved = upload(batch, torch.device("cpu"))
    before, after = tensors_of(batch), tensors_of(moved)
    assert len(before) == len(after) > 20
    for a, b in zip(before, after):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a, b)
        assert b.storage_offset() * b.element_size() % 16 == 0
    assert len({b.untyped_storage().data_ptr() for b in after}) == 1
    assert moved.filters.head == batch.filters.head
    assert moved.top_logprobs == batch.top_logprobs


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA can report that the host waited")
def test_the_host_never_waits(row):
    """Building a batch and sampling it, every stage in use, with errors for whatever synchronizes."""
    logits, rows, positions, tokens = mixed_batch(row, 811, 40)
    logits, positions, tokens = logits.cuda(), positions.cuda(), tokens.cuda()
    mask = torch.full((40, 26), -1, dtype=torch.int32, device="cuda")
    sampler = Sampler(811, "cuda")
    for mode in ("default", "error"):  # kernels are compiled and loaded the first time, which may wait
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode(mode)
        try:
            out = sampler.sample(logits, SamplingBatch.build(rows, 811, "cuda"), positions, tokens, mask)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    assert bool((out.token_ids < 811).all())
