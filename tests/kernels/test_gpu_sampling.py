"""The sampling kernels against torch: on the GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch

pytest.importorskip("supported_triton")

from rootlet.kernels.gpu import sampling as kernels
from rootlet.kernels.gpu.sample_edits import apply_penalties, mask_disallowed
from rootlet.kernels.gpu.sample_filtered import draw_filtered, softmax_rows
from rootlet.kernels.gpu.sampling import FILTERED, GREEDY, GREEDY_WITH_TOTAL, PLAIN, draw_rows
from rootlet.sampling import batch as sampling_batch
from rootlet.sampling import penalties as torch_edits
from rootlet.sampling.distributions import KEPT_CUT, NO_CUT, TOP_P_CUT
from rootlet.sampling.draw import draw_rows_reference
from rootlet.sampling.filters import draw_by_sorting
from rootlet.sampling.rows import Rows
from rootlet.sampling.scratch import Scratch
from rootlet.sampling.seeds import stream_key
from rootlet.sampling.stages import Filters, Penalties

FALSE_ALARM = 1e-6


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def poisoned_memory():
    """torch.empty gives NaN and the largest integers, so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def keys(count, device):
    return torch.tensor([stream_key(seed) for seed in range(count)], device=device)


def difficult_logits(vocab) -> torch.Tensor:
    """Ordinary rows first, then -inf in whole blocks, ties, one token left, nothing left, +inf, NaN."""
    x = torch.randn(12, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    x[3, 100:600] = -torch.inf
    x[4] = (x[4] / 3).round()
    x[5] = 2.5
    x[6] = -torch.inf
    x[6, vocab - 1] = -4.0
    x[7] = -torch.inf
    x[8, 300] = torch.inf
    x[9, ::7] = torch.nan
    x[10] = torch.nan
    return x


def assert_at_the_uniform(tokens, logits, temperature, uniform, tolerance=1e-6):
    """The fp64 distribution function passes ``uniform`` at these tokens, up to ``tolerance``."""
    probs = torch.softmax(logits.double().cpu() / temperature.double().cpu().view(-1, 1), 1)
    running = probs.cumsum(1)
    at = tokens.cpu().unsqueeze(1)
    upto = running.gather(1, at).squeeze(1)
    before = upto - probs.gather(1, at).squeeze(1)
    uniform = uniform.cpu()
    assert bool((probs.gather(1, at) > 0).all())
    assert bool((before <= uniform + tolerance).all())
    assert bool((upto >= uniform - tolerance).all())


def test_kinds_are_those_of_the_batch():
    assert [
        getattr(sampling_batch, name) for name in ("GREEDY", "GREEDY_WITH_TOTAL", "PLAIN", "FILTERED")
    ] == [GREEDY, GREEDY_WITH_TOTAL, PLAIN, FILTERED]


@pytest.mark.parametrize(
    ("dtype", "mixed"), [(torch.float32, True), (torch.bfloat16, False), (torch.float16, True)], ids=str
)
def test_draw_rows(device, dtype, mixed):
    """All kinds of rows and difficult logits; totals within 1e-5 of the reference (rounding of exp)."""
    vocab = 777
    logits = difficult_logits(vocab).to(device, dtype)
    wide = torch.full((12, vocab + 13), torch.nan, dtype=dtype, device=device)  # rows lie apart in memory
    wide[:, :vocab] = logits
    kinds = torch.arange(12) % 4 if mixed else torch.full((12,), PLAIN)
    kinds = kinds.to(device, torch.int32)
    temperature = torch.tensor([1.0, 0.3, 2.5, 1.0] * 3, device=device)
    positions = torch.arange(12, device=device) + 7
    with poisoned_memory():
        got = draw_rows(wide[:, :vocab], temperature, kinds, keys(12, device), positions, block=512)
    wanted = draw_rows_reference(logits, temperature, kinds, keys(12, device), positions)
    assert torch.equal(got.token_ids, wanted[0])
    assert torch.equal(got.highest, wanted[1])
    asking = kinds != GREEDY
    torch.testing.assert_close(got.total[asking].double(), wanted[2][asking].double(), rtol=1e-5, atol=0)
    assert torch.equal(got.uniform[asking], wanted[3][asking])
    ordinary = torch.arange(7, device=device)[(kinds == PLAIN)[:7]]
    assert_at_the_uniform(
        got.token_ids[ordinary], logits[ordinary], temperature[ordinary], got.uniform[ordinary]
    )


def test_greedy_takes_the_lowest_of_equal_ids(device):
    logits = torch.randint(0, 4, (8, 700), generator=torch.Generator().manual_seed(0)).bfloat16()
    first_maximum = torch.from_numpy(logits.float().numpy().argmax(1))
    kinds = torch.tensor([GREEDY, GREEDY_WITH_TOTAL] * 4, dtype=torch.int32, device=device)
    ones = torch.ones(8, device=device)
    got = draw_rows(logits.to(device), ones, kinds, keys(8, device), keys(8, device), block=256)
    assert torch.equal(got.token_ids.cpu(), first_maximum)


def test_draw_rows_depends_on_nothing_but_the_row(device):
    """Bit for bit the same at any block size, number of warps, place in the batch and alone."""
    logits = difficult_logits(1001)[[0, 3, 4, 8, 11]].to(device)
    kinds = torch.full((5,), PLAIN, dtype=torch.int32, device=device)
    temperature = torch.linspace(0.2, 3, 5, device=device)
    arguments = (logits, temperature, kinds, keys(5, device), torch.arange(5, device=device))
    whole = draw_rows(*arguments, block=1024)
    for options in ({"block": 256, "num_warps": 4}, {}):
        assert all(torch.equal(a, b) for a, b in zip(whole, draw_rows(*arguments, **options)))
    for index in ([4, 2, 2], [1], [3]):
        part = draw_rows(*(x[index] for x in arguments), block=512)
        assert all(torch.equal(a[index], b) for a, b in zip(whole, part))


def test_temperature_extremes(device):
    """Almost 0 is greedy; almost infinite is uniform over what is not banned."""
    count = 64 if device.type == "cuda" else 9
    logits = torch.randn(count, 50, generator=torch.Generator().manual_seed(0)) * 3
    logits[:, 7] = -torch.inf
    logits = logits.to(device)
    kinds = torch.full((count,), PLAIN, dtype=torch.int32, device=device)
    positions = torch.arange(count, device=device)

    def drawn(temperature):
        values = torch.full((count,), temperature, device=device)
        return draw_rows(logits, values, kinds, keys(count, device), positions, block=64)

    assert torch.equal(drawn(1e-6).token_ids, logits.argmax(1))
    hot = drawn(1e30)
    nth = (hot.uniform * 49).long()
    assert torch.equal(hot.token_ids, nth + (nth >= 7))


def test_frequencies(device):
    """Chi-square against the exact distribution, false-alarm probability 1e-6: draws by one seed in turn.

    The interpreter is too slow for so many draws; without a GPU the reference draws, which the kernel equals
    token by token in the tests above.
    """
    draws, vocab = 30_000, 500
    logits = torch.full((vocab,), -torch.inf)
    logits[::50] = torch.randn(10, generator=torch.Generator().manual_seed(1))
    temperature = 0.8
    table = logits.to(device).expand(draws, vocab)
    draw = draw_rows if device.type == "cuda" else draw_rows_reference
    token_ids, *_ = draw(
        table,
        torch.full((draws,), temperature, device=device),
        torch.full((draws,), PLAIN, dtype=torch.int32, device=device),
        torch.full((draws,), stream_key(5), device=device),
        torch.arange(draws, device=device),
    )
    expected = torch.softmax(logits.double() / temperature, 0) * draws
    observed = torch.bincount(token_ids.cpu(), minlength=vocab)
    assert int(observed[expected == 0].sum()) == 0
    observed, expected = observed[::50], expected[::50]
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert torch.special.gammaincc(torch.tensor(9 / 2).double(), statistic / 2) > FALSE_ALARM


def distributions(vocab) -> torch.Tensor:
    """fp32 rows: peaked, ordinary, flat, ties, halvings that hit thresholds exactly, zeros, one token."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(8, vocab, generator=generator)
    logits[0] *= 8
    logits[1] *= 3
    logits[2] *= 0.1
    logits[3] = logits[3].round()
    probs = torch.softmax(logits, 1)
    probs[4] = 1 / vocab
    probs[5] = 0
    halves = torch.randperm(vocab, generator=generator)[:12]
    probs[5, halves] = torch.tensor([2.0**-k for k in (1, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9, 9)])
    probs[6, 40:] = 0
    probs[6] /= probs[6].sum()
    probs[7] = 0
    probs[7, 5] = 1
    return probs


RULES = [  # top_k, top_p, min_p
    (10**6, 0.9, 0.0),
    (20, torch.inf, 0.0),
    (10**6, torch.inf, 0.05),
    (50, 0.75, 0.01),
    (10**6, 0.9999, 0.0),
    (1, torch.inf, 0.0),
    (300, 0.5, 0.25),
    (10**6, 0.01, 1.0),
]


def assert_equals_sorting(probs, uniform, rules, device, **options):
    """By each cut; what all rules keep is told with the last."""
    for cut in (TOP_P_CUT, KEPT_CUT):
        assert_equals_sorting_by(cut, probs, uniform, rules, device, **options)


def assert_equals_sorting_by(cut, probs, uniform, rules, device, **options):
    vocab = probs.shape[1]
    top_k, top_p, min_p = (torch.tensor(column, dtype=torch.float64).unsqueeze(1) for column in zip(*rules))
    kept = cut == KEPT_CUT
    cuts = torch.where(top_p.isfinite() | kept, cut, NO_CUT).to(torch.uint8)
    filters = Filters(top_k.clamp(max=vocab).long(), top_p, min_p, cuts, True, kept, vocab)
    wanted = draw_by_sorting(probs, uniform, filters)
    arguments = (
        probs,
        uniform,
        filters.top_k,
        filters.top_p,
        filters.min_p,
        filters.cut,
    )
    with poisoned_memory():
        got = draw_filtered(*(x.to(device) for x in arguments), want_kept=kept, **options)
    for ours, theirs in zip(got, wanted):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours.cpu(), theirs)


def test_draw_filtered_equals_sorting(device):
    """Bit for bit, tokens, mass, count and kept set: every distribution with every rule, in turn.

    The interpreter has time for one turn, and one long list.
    """
    vocab = 3001 if device.type == "cuda" else 1300
    probs = distributions(vocab)
    for turn in range(8) if device.type == "cuda" else range(1):
        rules = RULES[turn * 3 % 8 :] + RULES[: turn * 3 % 8]
        uniform = torch.rand(8, generator=torch.Generator().manual_seed(turn), dtype=torch.float64)
        assert_equals_sorting(probs, uniform, rules, device, block=1024, choose_block=1024)


def test_draw_filtered_at_the_ends_of_the_kept_set(device):
    """uniform 0 is the first token of the ranking, just below 1 the last kept one; halvings and ties."""
    probs = distributions(300)[[5, 5, 3, 4, 5, 0]]
    end = 1 - 2.0**-53
    uniform = torch.tensor([0.0, end, end, 0.0, end, end], dtype=torch.float64)
    # 0.75 is reached exactly: the token after it is still kept; so are tokens of exactly min_p * highest
    rules = [(10**6, 0.75, 0.0), (10**6, 0.75, 0.0), (40, 0.9, 0.0), (16, 0.9, 0.0)]
    rules += [(10**6, torch.inf, 0.25), (9, 0.99, 0.01)]
    assert_equals_sorting(probs, uniform, rules, device, block=512)


def test_top_p_an_ulp_away_from_a_sum_of_equals(device):
    """top_p exactly 129 times the probability that all tokens have, and the numbers on both sides of that."""
    probs = distributions(300)[[4, 4, 4]]
    edge = 129 * float(probs[0, 0].double() + 1.0 - 1.0)
    rules = [(10**6, top_p, 0.0) for top_p in (math.nextafter(edge, 0), edge, math.nextafter(edge, 1))]
    uniform = torch.full((3,), 1 - 2.0**-53, dtype=torch.float64)
    assert_equals_sorting(probs, uniform, rules, device, block=512)


def test_draw_filtered_does_not_depend_on_block_sizes(device):
    probs, uniform = distributions(700)[1:3], torch.tensor([0.4, 0.95], dtype=torch.float64)
    assert_equals_sorting(probs, uniform, RULES[3:5], device, block=256, choose_block=256, choose_warps=2)
    if device.type == "cuda":
        assert_equals_sorting(probs, uniform, RULES[3:5], device)


def test_rows_without_mass_yield_a_token(device):
    rules = [torch.full((2, 1), value, device=device) for value in (5, 0.5, 0.1)]
    ids, *_ = draw_filtered(
        torch.zeros(2, 70, device=device),
        torch.tensor([0.0, 0.9], dtype=torch.float64, device=device),
        rules[0].long(),
        rules[1].double(),
        rules[2].double(),
        torch.tensor([[TOP_P_CUT], [KEPT_CUT]], dtype=torch.uint8, device=device),
        want_kept=True,
    )
    assert ids.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_rows(device, dtype):
    """Relative error below 3e-5 against fp64 (exponents reach 60, each rounded three times in fp32); banned
    tokens exactly 0; a row without a total all 0."""
    logits = difficult_logits(777)[:8].to(device, dtype)
    temperature = torch.tensor([[1.0], [0.4], [3.0], [1.0]] * 2, device=device)
    kinds = torch.full((8,), FILTERED, dtype=torch.int32, device=device)
    found = draw_rows(logits, temperature, kinds, keys(8, device), keys(8, device), block=512)
    wanted = torch.softmax(logits.double() / temperature.double(), 1).float()
    wanted[7] = 0
    for index in (None, torch.tensor([7, 3, 1], device=device)):
        with poisoned_memory():
            got = softmax_rows(logits, index, temperature, found.highest, found.total, block=512)
        expected = wanted if index is None else wanted[index]
        torch.testing.assert_close(got, expected, rtol=3e-5, atol=0)
        assert torch.equal(got == 0, expected == 0)


@pytest.mark.parametrize("some", [False, True])
def test_apply_penalties(device, some):
    """Against the torch stage, relative error 1e-6; what nobody asked to change is the same bit for bit."""
    generator = torch.Generator().manual_seed(3)
    rows, vocab = 5, 611
    logits = torch.randn(rows, vocab, generator=generator) * 3
    logits[:, 5] = -torch.inf
    tokens = torch.randint(0, vocab, (9, 700), generator=generator, dtype=torch.int32)
    tokens[:, ::3] %= 20
    positions = torch.tensor([1, 690, 33, 300, 520])
    index = torch.tensor([1, 2, 4]) if some else None
    count = 3 if some else rows
    column = torch.linspace(0.3, 1.7, count).unsqueeze(1)
    penalties = Penalties(
        rows=Rows(index, count),
        slots=torch.tensor([8, 0, 3, 5, 6])[:count],
        prompt_lens=torch.tensor([1, 7, 33, 200, 520])[:count],
        frequency=column - 0.9,
        presence=0.7 - column,
        repetition=column,
        any_linear=True,
        any_repetition=True,
    )
    wanted = logits.clone()
    torch_edits.apply_penalties(wanted, penalties, positions, tokens, Scratch(torch.device("cpu")))
    got = logits.to(device)
    arguments = (
        penalties.slots,
        penalties.prompt_lens,
        penalties.frequency,
        penalties.presence,
        penalties.repetition,
        positions,
        tokens,
    )
    with poisoned_memory():
        where = None if index is None else index.to(device)
        apply_penalties(got, where, *(x.to(device) for x in arguments), block=512)
    got = got.cpu()
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    untouched = wanted == logits
    assert torch.equal(got[untouched], logits[untouched])


def test_mask_disallowed(device):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 803, generator=generator)
    words = torch.randint(-(2**31), 2**31, (3, 26), generator=generator).to(torch.int32)
    words[1] = -1
    wanted = logits.clone()
    torch_edits.mask_disallowed(wanted, words)
    got = logits.to(device)
    mask_disallowed(got, words.to(device), block=256)
    assert torch.equal(got.cpu(), wanted)
    assert torch.equal(wanted[1], logits[1])


def test_errors_name_the_sizes(device):
    logits, row = torch.zeros(2, 8, device=device), torch.ones(2, device=device)
    with pytest.raises(ValueError, match="takes one contiguous element per row"):
        draw_rows(logits, row[:1], row.int(), row.long(), row.long())
    with pytest.raises(ValueError, match="V <= "):
        draw_rows(logits[:, :1].expand(2, kernels.MAX_VOCAB + 1), row, row.int(), row.long(), row.long())
    with pytest.raises(ValueError, match=r"torch\.float32"):
        draw_filtered(logits.bfloat16(), row.double(), row.long(), row.double(), row.double(), row.bool())
    with pytest.raises(ValueError, match=r"torch\.float32"):
        mask_disallowed(logits.bfloat16(), torch.zeros(2, 1, dtype=torch.int32, device=device))
    with pytest.raises(ValueError, match=r"\[2, 1\]"):
        mask_disallowed(logits, torch.zeros(2, 0, dtype=torch.int32, device=device))


def test_no_rows(device):
    """A batch of no rows launches nothing."""
    nothing = torch.empty(0, device=device)
    logits = torch.empty(0, 40, device=device)
    drawn = draw_rows(logits, nothing, nothing.int(), nothing.long(), nothing.long())
    assert [x.numel() for x in drawn] == [0] * 5
    ids, *_ = draw_filtered(
        logits, nothing.double(), nothing.long(), nothing.double(), nothing.double(), nothing.bool()
    )
    assert ids.numel() == 0
