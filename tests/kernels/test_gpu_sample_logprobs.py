"""Ranks and log-probabilities by kernels against torch: on the GPU if there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("supported_triton")

from rootlet.kernels.gpu.sample_logprobs import rank_tokens, score_tokens
from rootlet.kernels.gpu.sampling import FILTERED, SCALE, draw_rows
from rootlet.sampling.logprobs import LOWEST, top_tokens
from rootlet.sampling.seeds import stream_key


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def hard_logits(vocab) -> torch.Tensor:
    """Ordinary rows, ties, all equal, few allowed, none allowed, infinities, NaN here and there and all over,
    zeros of both signs."""
    x = torch.randn(10, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    x[1] = x[1].round()
    x[2] = 2.5
    x[3, 3:] = -torch.inf
    x[4] = -torch.inf
    x[5, vocab // 2] = torch.inf
    x[6, :: max(vocab // 5, 1)] = torch.nan
    x[7] = torch.nan
    x[8] = 0.0
    x[8, ::2] = -0.0
    x[9] = -x[9].abs()
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("vocab", "width", "block"), [(1, 1, 16), (7, 7, 16), (300, 21, 64), (777, 5, 512)])
def test_ranks_are_those_of_a_stable_sort(device, dtype, vocab, width, block):
    """All rows and some, rows that lie apart in memory."""
    logits = hard_logits(vocab).to(dtype)
    wide = torch.full((10, vocab + 3), torch.inf, dtype=dtype)
    wide[:, :vocab] = logits
    wide = wide.to(device)
    wanted = torch.sort(logits.float(), dim=1, descending=True, stable=True).indices[:, :width]
    got = rank_tokens(wide[:, :vocab], None, width, block=block)
    assert got.dtype == torch.int64
    assert torch.equal(got.cpu(), wanted)
    assert torch.equal(wanted, top_tokens(logits, width))
    index = torch.tensor([9, 1, 6])
    some = rank_tokens(wide[:, :vocab], index.to(device), width, block=block)
    assert torch.equal(some.cpu(), wanted[index])


def in_torch(logits, rows, temperature, found, nucleus, ids):
    """Scores of ``ids`` [R, N], operation by operation."""
    total, highest = found.total[rows].double() / SCALE, found.highest[rows].unsqueeze(1)
    mass = torch.ones_like(total) if nucleus is None else nucleus[0][rows]
    offset = (total.log() + mass.log()).float().unsqueeze(1)
    values = (logits[rows].gather(1, ids).float() - highest) / temperature[rows].unsqueeze(1) - offset
    return values.clamp_(min=LOWEST)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [0, 1, 5, 40])
@pytest.mark.parametrize("by_mass", [False, True])
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")  # by the interpreter's NumPy
def test_scores_are_those_of_torch_to_the_bit(device, dtype, width, by_mass):
    logits = hard_logits(400)[[0, 1, 2, 3, 5, 6, 8, 9]].to(device, dtype)
    size = len(logits)
    temperature = torch.tensor([1.0, 0.3, 2.5, 1.7] * 2, device=device)
    kinds = torch.full((size,), FILTERED, dtype=torch.int32, device=device)
    keys = torch.tensor([stream_key(i) for i in range(size)], device=device)
    found = draw_rows(logits, temperature, kinds, keys, keys, block=512)
    nucleus = None
    if by_mass:
        mass = torch.linspace(0.1, 1, size, dtype=torch.float64, device=device)
        nucleus = mass, torch.arange(size, device=device) + 1
    for index in (None, torch.tensor([6, 0, 3], device=device)):
        rows = torch.arange(size, device=device) if index is None else index
        ids = rank_tokens(logits, index, width, block=128) if width else None
        chosen, values = score_tokens(
            logits, index, temperature, found.highest, found.total, found.token_ids, nucleus, ids
        )
        own = found.token_ids[rows].unsqueeze(1)
        wanted = in_torch(logits, rows, temperature, found, nucleus, own).squeeze(1)
        torch.testing.assert_close(chosen, wanted, rtol=0, atol=0, equal_nan=True)
        if ids is None:
            assert values is None
            continue
        wanted = in_torch(logits, rows, temperature, found, nucleus, ids)
        if nucleus is not None:
            ranks = torch.arange(width, device=device)
            wanted.masked_fill_(ranks >= nucleus[1][rows].unsqueeze(1), LOWEST)
        torch.testing.assert_close(values, wanted, rtol=0, atol=0, equal_nan=True)


def test_rows_without_a_token_are_told(device):
    logits = hard_logits(50).to(device)
    ones = torch.ones(10, device=device)
    found = draw_rows(logits, ones, ones.int(), ones.long(), ones.long(), block=64)
    assert found.no_token.tolist() == (~(found.highest > -torch.inf)).int().tolist()
    assert found.no_token.tolist() == [0, 0, 0, 0, 1, 0, 0, 1, 0, 0]


def test_no_rows_and_wrong_widths(device):
    logits, none = torch.zeros(2, 8, device=device), torch.empty(0, dtype=torch.int64, device=device)
    assert rank_tokens(logits, none, 3).shape == (0, 3)
    for width in (0, 9):
        with pytest.raises(ValueError, match="it takes 1 to 8"):
            rank_tokens(logits, None, width)
