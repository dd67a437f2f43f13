"""Rotary embedding fused with the store into the paged cache."""

from __future__ import annotations

import pytest
import torch

from rootlet.kernels.rotary import rotary_and_store, rotary_and_store_reference

TOLERANCE = {
    torch.float32: {"atol": 1e-5, "rtol": 1e-5},
    torch.bfloat16: {"atol": 1e-6, "rtol": 2**-7},
}
POSITIONS = 300


class Case:
    """Random inputs; the slots are scattered over the cache."""

    def __init__(self, tokens=5, heads=(9, 3, 64), rotary_dim=64, dtype=torch.float32, page_size=16) -> None:
        self.num_q, self.num_kv, dim = heads
        self.qkv = torch.randn(tokens, (self.num_q + 2 * self.num_kv) * dim).to(dtype)
        angle = torch.arange(POSITIONS)[:, None] * 1e4 ** -(
            torch.arange(rotary_dim // 2) / max(rotary_dim // 2, 1)
        )
        self.cos_sin = torch.cat((angle.cos(), angle.sin()), dim=1)
        self.positions = torch.randint(0, POSITIONS, (tokens,))
        self.slots = torch.randperm(12 * page_size)[:tokens]
        self.k = torch.randn(12, page_size, self.num_kv, dim).to(dtype)
        self.v = torch.randn(12, page_size, self.num_kv, dim).to(dtype)

    def run(self, function=rotary_and_store):
        """(q, k cache, v cache) of a run on copies of the caches."""
        k, v = self.k.clone(), self.v.clone()
        q = function(self.qkv, self.cos_sin, self.positions, self.slots, k, v, self.num_q)
        return q, k, v


@pytest.mark.usefixtures("c_build")
@pytest.mark.parametrize(
    ("tokens", "heads", "rotary_dim"),
    [
        (5, (9, 3, 64), 64),
        (1, (4, 4, 128), 128),
        (3, (4, 2, 20), 12),
        (100, (8, 1, 80), 80),
        (2, (2, 1, 6), 0),
        (0, (4, 2, 8), 8),
    ],
    ids=str,
)
@pytest.mark.parametrize("page_size", [1, 3, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_against_reference(tokens, heads, rotary_dim, dtype, page_size):
    case = Case(min(tokens, 12 * page_size), heads, rotary_dim, dtype, page_size)
    qkv = case.qkv.clone()
    for actual, expected in zip(case.run(), case.run(rotary_and_store_reference)):
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual, expected, **TOLERANCE[dtype])
    assert torch.equal(case.qkv, qkv)


@pytest.mark.usefixtures("implementation")
def test_rotation_is_by_the_position():
    """As complex numbers, the pair (i, i + half) turns by position * frequency; the rest stays."""
    case = Case(tokens=6, heads=(2, 1, 24), rotary_dim=16)
    q, k, v = case.run()
    heads = case.qkv.view(6, 4, 24)
    pairs = torch.complex(heads[:, :3, :8], heads[:, :3, 8:16])
    turn = torch.complex(*case.cos_sin[case.positions].chunk(2, dim=1))[:, None]
    expected = torch.cat(((pairs * turn).real, (pairs * turn).imag, heads[:, :3, 16:]), dim=-1)
    torch.testing.assert_close(q, expected[:, :2])
    torch.testing.assert_close(k.flatten(0, 1)[case.slots], expected[:, 2:])
    assert torch.equal(v.flatten(0, 1)[case.slots], heads[:, 3:])


@pytest.mark.usefixtures("implementation")
def test_other_slots_keep_their_contents():
    case = Case(tokens=5)
    _, k, v = case.run()
    others = torch.ones(12 * 16, dtype=torch.bool)
    others[case.slots] = False
    for before, after in ((case.k, k), (case.v, v)):
        assert torch.equal(before.flatten(0, 1)[others], after.flatten(0, 1)[others])


@pytest.mark.usefixtures("implementation")
def test_strided_inputs():
    case = Case(tokens=5)
    expected = case.run()
    case.qkv = case.qkv.T.contiguous().T
    case.positions = torch.stack((case.positions, case.positions), dim=1)[:, 0]
    case.slots = torch.stack((case.slots, case.slots), dim=1)[:, 0]
    for actual, before in zip(case.run(), expected):
        assert torch.equal(actual, before)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("field", ["positions", "slots"])
def test_token_outside_a_table_is_refused(field):
    case = Case()
    getattr(case, field)[2] = 10**6
    with pytest.raises(IndexError):
        case.run()


@pytest.mark.usefixtures("implementation")
def test_wrong_shapes_and_types_are_refused():
    case = Case()
    for field, value, message in (
        ("qkv", case.qkv[:, :-1], "does not fit the caches"),
        ("cos_sin", case.cos_sin.double(), "must be fp32"),
        ("cos_sin", torch.zeros(9, 66), "of even width <= 64"),
        ("positions", case.positions.int(), "int64"),
        ("slots", case.slots[:-1], "for 5 tokens"),
    ):
        case = Case()
        setattr(case, field, value)
        with pytest.raises(ValueError, match=message):
            case.run()


@pytest.mark.usefixtures("implementation")
def test_strided_cache_is_refused():
    case = Case()
    k = case.k.transpose(0, 1)
    with pytest.raises(ValueError, match="contiguous"):
        rotary_and_store(
            case.qkv, case.cos_sin, case.positions, case.slots, k, case.v.transpose(0, 1), case.num_q
        )
