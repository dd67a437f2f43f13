"""Rotary embedding and the store into the cache, in Triton, against the torch reference."""

from __future__ import annotations

import pytest
import torch

from rootlet.kernels.rotary import rotary_and_store_reference

pytest.importorskip("supported_triton")

from rootlet.kernels.gpu.rotary import rotary_and_store

TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 1e-6, "rtol": 2**-7}}
POSITIONS = 300


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class Case:
    """Random inputs; the locations are scattered over the cache."""

    def __init__(self, device, tokens=5, heads=(9, 3, 64), rotary_dim=64, dtype=torch.float32, page_size=16):
        self.num_q, self.num_kv, dim = heads
        self.qkv = torch.randn(tokens, (self.num_q + 2 * self.num_kv) * dim, device=device).to(dtype)
        self.cos_sin = torch.randn(POSITIONS, rotary_dim, device=device)
        self.positions = torch.randint(0, POSITIONS, (tokens,), device=device)
        self.slots = torch.randperm(12 * page_size, device=device)[:tokens]
        self.k = torch.randn(12, page_size, self.num_kv, dim, device=device).to(dtype)
        self.v = torch.randn(12, page_size, self.num_kv, dim, device=device).to(dtype)

    def run(self, function=rotary_and_store, **options):
        """(q, k cache, v cache) of a run on copies of the caches."""
        k, v = self.k.clone(), self.v.clone()
        q = function(self.qkv, self.cos_sin, self.positions, self.slots, k, v, self.num_q, **options)
        return q, k, v


@pytest.mark.parametrize(
    ("tokens", "heads", "rotary_dim", "page_size"),
    [
        (5, (9, 3, 64), 64, 16),
        (1, (4, 4, 128), 128, 16),
        (3, (4, 2, 20), 12, 3),
        (11, (2, 1, 80), 80, 16),
        (2, (2, 1, 6), 0, 1),
        (0, (4, 2, 8), 8, 16),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads_each", [None, 2])
def test_against_reference(tokens, heads, rotary_dim, page_size, dtype, heads_each, device):
    """The whole caches are compared, so other locations must keep their contents."""
    case = Case(device, tokens, heads, rotary_dim, dtype, page_size)
    qkv = case.qkv.clone()
    expected = case.run(rotary_and_store_reference)
    case.positions = case.positions.int() if heads_each else case.positions
    case.slots = case.slots.int() if heads_each else case.slots
    out = torch.full((tokens, heads[0], heads[2]), float("nan"), device=device, dtype=dtype)
    for actual, wanted in zip(case.run(out=out, heads=heads_each), expected):
        assert actual.shape == wanted.shape
        torch.testing.assert_close(actual, wanted, **TOLERANCE[dtype])
    assert torch.equal(case.qkv, qkv)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the rotation of v, which is not used
def test_v_is_copied_whatever_it_holds(device):
    case = Case(device, tokens=2, heads=(2, 1, 16), rotary_dim=16)
    case.qkv[0, -16:] = float("inf")
    case.qkv[1, -1] = float("nan")
    _, _, v = case.run()
    stored = v.flatten(0, 1)[case.slots]
    torch.testing.assert_close(stored, case.qkv[:, None, -16:], rtol=0, atol=0, equal_nan=True)


def test_strided_rows(device):
    case = Case(device, tokens=3, heads=(2, 1, 16), rotary_dim=16)
    expected = case.run()
    case.qkv = torch.cat((case.qkv, case.qkv), dim=1)[:, : case.qkv.shape[1]]
    case.positions = torch.stack((case.positions, case.positions), dim=1)[:, 0]
    for actual, wanted in zip(case.run(), expected):
        assert torch.equal(actual, wanted)


def test_refusals(device):
    good = Case(device)
    for field, value, message in (
        ("qkv", good.qkv[:, :-1], "does not fit the caches"),
        ("qkv", good.qkv.bfloat16(), "one dtype"),
        ("cos_sin", good.cos_sin.double(), "must be fp32"),
        ("cos_sin", torch.zeros(9, 66, device=device), "of even width <= 64"),
        ("positions", good.positions.short(), "int32 or int64"),
        ("slots", good.slots[:-1], "for 5 tokens"),
    ):
        case = Case(device)
        setattr(case, field, value)
        with pytest.raises(ValueError, match=message):
            case.run()
    case.k = case.k.transpose(0, 1).contiguous().transpose(0, 1)
    with pytest.raises(ValueError):
        case.run()
    with pytest.raises(ValueError, match="out"):
        good.run(out=torch.zeros(5, 9, 63, device=device))
