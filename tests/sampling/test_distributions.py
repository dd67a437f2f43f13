"""``logprobs_of`` and sampling masks: each distribution against its definition, in fp64, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rootlet.kernels.token_mask import unpack_tokens
from rootlet.sampling.batch import SamplingBatch
from rootlet.sampling.logprobs import LOWEST, prompt_logprobs
from rootlet.sampling.sampler import Sampler

VOCAB, TOP = 212, 7
KINDS = [
    {"temperature": 0},
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 1},
    {"temperature": 0.8, "top_p": 0.7},
    {"temperature": 2.5, "top_k": 20},
    {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
    {"min_p": 0.1, "frequency_penalty": 0.6, "presence_penalty": -0.4},
    {"temperature": 0, "repetition_penalty": 1.3, "logit_bias": {3: 5.0, 190: -100.0}},
    {"top_p": 0.5, "logit_bias": {9: 30.0}, "min_new_tokens": 40},
]
ASKED = ["sampled", "tempered", "raw", None]


def softmax(logits) -> np.ndarray:
    scores = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        shares = np.exp(scores - scores.max())
    return shares / shares.sum()


def edited(logits, row, history, allowed) -> np.ndarray:
    """What the sampler draws from, before the temperature: the rules one after the other."""
    z, params = np.asarray(logits, dtype=np.float64).copy(), row.params
    for token, bias in (params.logit_bias or {}).items():
        z[token] += bias
    output = history[row.prompt_len :]
    if len(output) < params.min_new_tokens:
        z[list(row.banned_until_min)] = -np.inf
    for token in set(output):
        z[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    for token in set(history):
        factor = params.repetition_penalty
        z[token] = z[token] / factor if z[token] > 0 else z[token] * factor
    if allowed is not None:
        z[~allowed] = -np.inf
    return z


def kept_tokens(z, params) -> np.ndarray:
    """Which tokens may be drawn [V] bool: not banned, and kept by every filter unless decoding is greedy."""
    kept = z > -np.inf
    if params.is_greedy:
        return kept
    probs = softmax(z / params.temperature)
    order = np.argsort(-probs, kind="stable")
    before = np.cumsum(probs[order]) - probs[order]
    chosen = np.ones(len(z), dtype=bool)
    if params.top_k > 0:
        chosen[params.top_k :] = False
    if params.top_p < 1:
        chosen &= before <= params.top_p
    chosen &= probs[order] >= params.min_p * probs.max()
    return kept & chosen[np.argsort(order)]


def wanted_logprobs(asked, logits, z, params) -> np.ndarray:
    """[V], the definition of ``asked``; the lowest number for tokens that it leaves out."""
    heat = 1.0 if params.is_greedy else params.temperature
    if asked == "raw":
        probs = softmax(logits)
    elif asked == "tempered":
        probs = softmax(logits / (params.temperature or 1.0))
    else:
        probs = softmax(z / heat)
        dropped = ~kept_tokens(z, params)
        if asked is None:  # by top-p alone
            order = np.argsort(-probs, kind="stable")
            beyond = np.cumsum(probs[order]) - probs[order] > params.top_p
            dropped = beyond[np.argsort(order)] & (not params.is_greedy)
        probs = np.where(dropped, 0.0, probs)
        probs /= probs.sum()
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(probs), LOWEST)


def make_case(row, dtype, masked):
    """A row of every kind with every distribution, all in one batch."""
    pairs = [(params, asked) for params in KINDS for asked in ASKED]
    generator = torch.Generator().manual_seed(17)
    logits = (torch.randn(len(pairs), VOCAB, generator=generator) * 3).to(dtype)
    tokens = torch.randint(0, VOCAB, (len(pairs) + 1, 30), generator=generator, dtype=torch.int32)
    rows = [
        row(
            seed=i, slot=i + 1, prompt_len=4, banned=(2, 9), logprobs=True, top_logprobs=i % (TOP + 1),
            logprobs_of=asked, sampling_mask=i % 3 != 2, **params,
        )
        for i, (params, asked) in enumerate(pairs)
    ]  # fmt: skip
    positions = torch.tensor([4 + i % 11 for i in range(len(rows))])
    allowed = None
    if masked:
        allowed = torch.randint(-(2**31), 2**31, (len(rows), -(-VOCAB // 32)), generator=generator).int()
    return logits, rows, positions, tokens, allowed


def check(out, logits, rows, positions, tokens, allowed):
    masks = iter([] if out.kept is None else out.kept.numpy())
    for i, row in enumerate(rows):
        history = tokens[row.slot, : positions[i]].tolist()
        bits = None
        if allowed is not None:
            bits = np.unpackbits(allowed[i].numpy().view(np.uint8), bitorder="little")[:VOCAB].astype(bool)
        own = logits[i].float().numpy().astype(np.float64)
        z = edited(own, row, history, bits)
        wanted = wanted_logprobs(row.logprobs_of, own, z, row.params)
        assert np.isclose(out.logprobs[i], wanted[out.token_ids[i]], atol=2e-5), (i, row)
        width = row.top_logprobs
        if width:
            ids = out.top_ids[i, :width].tolist()
            assert np.allclose(out.top_values[i, :width], wanted[ids], atol=2e-5), (i, row)
            of_model = row.logprobs_of in ("raw", "tempered")
            best = np.sort(own if of_model else z)[::-1][:width]
            assert np.allclose((own if of_model else z)[ids], best, atol=1e-5)
        if row.masked:
            got = unpack_tokens(next(masks), VOCAB).tolist()
            assert got == np.flatnonzero(kept_tokens(z, row.params)).tolist(), (i, row)
            assert out.token_ids[i] in got
    assert next(masks, None) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_each_row_gets_the_distribution_it_asks_for(sample, row, dtype, masked):
    case = make_case(row, dtype, masked)
    check(sample(*case), *case)


@pytest.mark.parametrize("masked", [False, True])
def test_kernels_give_them_too(row, masked):
    """On the GPU if there is one, else interpreted."""
    pytest.importorskip("supported_triton")
    case = make_case(row, torch.float32, masked)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    logits, rows, positions, tokens, allowed = case
    some = (
        range(len(rows)) if device.type == "cuda" else range(masked, len(rows), 3)
    )  # the interpreter's pace
    logits, positions = logits[some], positions[some]
    rows, allowed = [rows[i] for i in some], None if allowed is None else allowed[some]
    there = [None if x is None else x.to(device) for x in (logits, positions, tokens, allowed)]
    batch = SamplingBatch.build(rows, VOCAB, device)
    out = Sampler(VOCAB, device, fused=True).sample(there[0], batch, *there[1:])
    names = ("token_ids", "logprobs", "top_values", "top_ids", "kept")
    out = type(out)(*(getattr(out, name).cpu() for name in names))
    check(out, logits, rows, positions, tokens, allowed)


@pytest.mark.parametrize("fused", [False, True])
def test_a_row_does_not_depend_on_its_batch(row, fused):
    """Bit for bit, whether its mates edit their logits, ask for other distributions, or there are none."""
    if fused:
        pytest.importorskip("supported_triton")
    logits, rows, positions, tokens, _ = make_case(row, torch.float32, masked=False)
    some = range(0, len(rows), 3 if fused else 1)  # the interpreter's pace
    logits, positions, rows = logits[some], positions[some], [rows[i] for i in some]
    sampler = Sampler(VOCAB, "cpu", fused=fused)

    def run(index):
        batch = SamplingBatch.build([rows[i] for i in index], VOCAB, "cpu")
        return sampler.sample(logits[index], batch, positions[index], tokens)

    whole = run(list(range(len(rows))))
    places = {i: at for at, i in enumerate(i for i, row in enumerate(rows) if row.masked)}
    for index in ([5, 8], [6]) if fused else ([i] for i in range(len(rows))):
        part = run(index)
        assert torch.equal(part.logprobs, whole.logprobs[index])
        for at, i in enumerate(index):
            if width := rows[i].top_logprobs:
                assert torch.equal(part.top_values[at, :width], whole.top_values[i, :width])
                assert torch.equal(part.top_ids[at, :width], whole.top_ids[i, :width])
        masked = [places[i] for i in index if i in places]
        assert (part.kept is None) == (not masked)
        assert part.kept is None or torch.equal(part.kept, whole.kept[masked])


def test_raw_values_are_those_of_a_prompt(sample, row):
    """To the bit: who scores an output as a prompt finds what was reported when it was drawn."""
    logits = torch.randn(9, 1000, generator=torch.Generator().manual_seed(5)) * 4
    rows = [row(seed=i, temperature=0.6, top_k=40, logprobs=True, logprobs_of="raw") for i in range(9)]
    out = sample(logits, rows)
    assert torch.equal(out.logprobs, prompt_logprobs(logits, out.token_ids, 0)[0])


def test_tempered_values_are_those_of_a_trainer(sample, row):
    """To the bit: log_softmax(logits / T) of the whole vocabulary, in torch."""
    logits = (torch.randn(9, 1000, generator=torch.Generator().manual_seed(6)) * 4).bfloat16()
    rows = [
        row(seed=i, temperature=0.6, top_p=0.9, logit_bias={5: 50.0}, logprobs=True, logprobs_of="tempered")
        for i in range(9)
    ]
    out = sample(logits, rows)
    wanted = torch.log_softmax(logits.float() / 0.6, 1).gather(1, out.token_ids.unsqueeze(1)).squeeze(1)
    assert torch.equal(out.logprobs, wanted)
    assert out.token_ids.tolist() == [5] * 9


def test_rows_that_keep_everything_are_not_looked_at(sample, row):
    """Nobody pays for a mask that says nothing; a greedy row's filters say nothing."""
    logits = torch.randn(3, 50)
    rows = [row(sampling_mask=True), row(temperature=0, top_p=0.5, sampling_mask=True), row(top_k=3)]
    assert [r.masked for r in rows] == [False, False, False]
    assert sample(logits, rows).kept is None
    one = [row(sampling_mask=True), row(top_k=3, sampling_mask=True), row(top_p=0.2)]
    kept = sample(logits, one).kept
    assert kept.shape == (1, 2)
    assert unpack_tokens(kept[0].numpy(), 50).tolist() == sorted(logits[1].topk(3).indices.tolist())


def test_a_processor_may_ban(sample, row):
    def ban(logits, params):
        logits[:, 7:] = -torch.inf
        return logits

    kept = sample(torch.randn(1, 50), [row(processor=ban, sampling_mask=True)]).kept
    assert unpack_tokens(kept[0].numpy(), 50).tolist() == list(range(7))
