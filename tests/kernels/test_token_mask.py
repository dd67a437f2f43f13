"""Masks of allowed tokens."""

from __future__ import annotations

import pytest
import torch

from rootlet.kernels.token_mask import mask_disallowed

pytestmark = pytest.mark.usefixtures("implementation")


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (1, 1), (3, 803), (2, 64), (9, 49_152)])
def test_a_bit_for_each_token(rows, columns):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, columns, generator=generator)
    words = torch.randint(-(2**31), 2**31, (rows, -(-columns // 32)), generator=generator).to(torch.int32)
    words[1:2] = -1
    words[2:3] = 0
    got = logits.clone()
    mask_disallowed(got, words)
    for row in range(rows):
        bits = [int(word) >> bit & 1 for word in words[row] for bit in range(32)][:columns]
        allowed = torch.tensor(bits, dtype=torch.bool)
        assert torch.equal(got[row][allowed], logits[row][allowed])
        assert torch.isinf(got[row][~allowed]).all()


def test_logits_with_gaps():
    logits = torch.zeros(4, 80)[:, ::2]
    mask_disallowed(logits, torch.tensor([[1, 0]] * 4, dtype=torch.int32))
    assert torch.isfinite(logits).sum() == 4


def test_other_shapes_and_dtypes_are_refused():
    words = torch.zeros(2, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"must be \[2, 3\], got \[2, 2\]"):
        mask_disallowed(torch.zeros(2, 70), words)
    with pytest.raises(ValueError, match="bfloat16"):
        mask_disallowed(torch.zeros(2, 64, dtype=torch.bfloat16), words)
