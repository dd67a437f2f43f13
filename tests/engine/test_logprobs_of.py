"""``logprobs_of`` and ``return_sampling_mask`` through the engine, against the logits of transformers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rootlet
from rootlet.engine.replies.sampling_masks import SamplingMasks
from rootlet.engine.schedule.sampling_masks import BITS, pack_masks, unpack_mask
from rootlet.errors import InvalidParameterError, InvalidRequestError
from rootlet.kernels.token_mask import pack_tokens
from rootlet.sampling.logprobs import LOWEST

from ..models.hf import build_hf

PROMPT = list(range(5, 17))
ASKED = ["sampled", "tempered", "raw"]
DRAWN = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "seed": 5, "max_new_tokens": 8}
DRAWN |= {"ignore_eos": True}


@pytest.fixture(scope="module")
def hf():
    return build_hf("Llama", vocab_size=300, eos_token_id=2).eval()


@pytest.fixture(scope="module")
def engine(hf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("logprobs")
    hf.save_pretrained(folder)
    options = {"dtype": "float32", "skip_tokenizer_init": True, "max_total_tokens": 1024}
    with rootlet.Engine(str(folder), deterministic=True, **options) as engine:
        yield engine


def logits_of(hf, prompt, output) -> torch.Tensor:
    """[N, V] fp64, before each output token."""
    with torch.no_grad():
        logits = hf(torch.tensor([[*prompt, *output.token_ids]])).logits[0]
    return logits[len(prompt) - 1 : -1].double()


@pytest.mark.parametrize("top", [None, 4])
def test_values_are_those_of_the_definition(engine, hf, top):
    """One prompt asked three ways, and as ever, in one batch: the same tokens, four kinds of numbers."""
    params = [DRAWN | {"logit_bias": {7: 6.0}, "frequency_penalty": 0.5}] * 4
    outputs = engine.generate(
        input_ids=[PROMPT] * 4,
        sampling_params=params,
        return_logprob=True,
        top_logprobs_num=top,
        logprobs_of=[*ASKED, None],
        return_sampling_mask=[True, False, True, False],
        logprob_start_len=3,
    )
    tokens = outputs[0].token_ids
    assert {o.token_ids for o in outputs} == {tokens}
    assert all(o.input_token_logprobs == outputs[0].input_token_logprobs for o in outputs)
    z = logits_of(hf, PROMPT, outputs[0])
    edited = z.clone()
    edited[:, 7] += 6.0
    for i in range(len(tokens)):
        for token in tokens[:i]:
            edited[i, token] -= 0.5
    drawn = torch.log_softmax(edited / 0.7, 1)
    for i, mask in enumerate(outputs[0].sampling_mask):
        assert mask.dtype == np.int32
        assert tokens[i] in mask
        assert (np.diff(mask) > 0).all()
        assert len(mask) <= 20
        kept = drawn[i, mask.tolist()]
        assert float(kept.logsumexp(0).exp()) < 1
        assert float(kept.min()) >= float(drawn[i].sort().values[-len(mask) - 1])
        drawn[i] -= kept.logsumexp(0)
        drawn[i, [t for t in range(300) if t not in mask]] = LOWEST
    wanted = [drawn, torch.log_softmax(z / 0.7, 1), torch.log_softmax(z, 1)]
    for output, values in zip(outputs, wanted):
        own = [value for value, *_ in output.output_token_logprobs]
        assert own == pytest.approx([float(values[i, t]) for i, t in enumerate(tokens)], abs=1e-4)
        for i in range(len(tokens) if top else 0):
            got = output.output_top_logprobs[i]
            best = values[i].sort(descending=True).values[:4].tolist()
            assert [value for value, *_ in got] == pytest.approx(best, abs=1e-4)
            assert [values[i, t] for _, t, _ in got] == pytest.approx(best, abs=1e-4)
    assert outputs[0].sampling_mask == outputs[2].sampling_mask
    assert outputs[1].sampling_mask is None
    assert "sampling_mask" not in outputs[1]["meta_info"]
    assert outputs[0]["meta_info"]["sampling_mask"] is outputs[0].sampling_mask


def test_greedy_rows(engine, hf):
    """The temperature of greedy decoding counts as 1; nothing is left out of what can be drawn."""
    params = {"temperature": 0, "top_p": 0.3, "max_new_tokens": 5, "ignore_eos": True}
    outputs = engine.generate(
        input_ids=[PROMPT] * 4,
        sampling_params=[params, params, params, params | {"temperature": 0.5, "top_k": 1}],
        return_logprob=True,
        logprobs_of=[*ASKED, "tempered"],
        return_sampling_mask=True,
    )
    z = logits_of(hf, PROMPT, outputs[0])
    for output, heat in zip(outputs, (1, 1, 1, 0.5)):
        values = torch.log_softmax(z / heat, 1).max(1).values.tolist()
        assert [value for value, *_ in output.output_token_logprobs] == pytest.approx(values, abs=1e-4)
        assert list(output.sampling_mask) == [None] * 5


def test_raw_values_are_those_of_the_output_as_a_prompt(engine):
    """Bit for bit, in deterministic mode: the numbers of a rollout can be checked without a trainer."""
    out = engine.generate(
        input_ids=PROMPT, sampling_params=DRAWN, return_logprob=True, logprobs_of="raw", top_logprobs_num=3
    )
    again = engine.generate(
        input_ids=[*PROMPT, *out.token_ids],
        sampling_params={"temperature": 0, "max_new_tokens": 0},
        return_logprob=True,
        logprob_start_len=len(PROMPT),
        top_logprobs_num=3,
    )
    assert again.input_token_logprobs == out.output_token_logprobs
    assert again.input_top_logprobs == out.output_top_logprobs


@pytest.mark.parametrize("asked", [*ASKED, None])
def test_mates_change_nothing(engine, asked):
    """The same bits alone and in a crowd of all kinds, streamed or not."""
    call = {"input_ids": PROMPT, "sampling_params": DRAWN, "return_logprob": True, "top_logprobs_num": 2}
    call |= {"logprobs_of": asked, "return_sampling_mask": True}
    alone = engine.generate(**call)
    mates = [
        engine.submit(
            PROMPT[i:] and None,
            {"temperature": i / 3, "top_p": 0.5 + i / 20, "seed": i, "max_new_tokens": 12, "min_p": i / 50},
            PROMPT[i:],
            return_logprob=True,
            logprobs_of=[*ASKED, None][i % 4],
            return_sampling_mask=i % 2 == 0,
        )
        for i in range(9)
    ]
    *_, last = engine.generate(**call, stream=True)
    for mate in mates:
        mate.result()
    for name in ("token_ids", "output_token_logprobs", "output_top_logprobs", "sampling_mask"):
        assert getattr(last, name) == getattr(alone, name)


def test_snapshots_are_consistent(engine):
    call = {"input_ids": PROMPT, "sampling_params": DRAWN, "return_logprob": True, "logprobs_of": "sampled"}
    for chunk in engine.generate(**call, return_sampling_mask=True, stream=True):
        assert len(chunk.sampling_mask) == len(chunk.output_token_logprobs) == len(chunk.token_ids)
        assert len(list(chunk.sampling_mask)) == len(chunk.token_ids)


def test_what_is_refused(engine):
    call = {"input_ids": PROMPT, "sampling_params": DRAWN}
    for wrong in ("documented", "SAMPLED", 1, True, ("raw", "x"), {"raw"}):
        with pytest.raises(InvalidRequestError, match="logprobs_of"):
            engine.generate(**call, return_logprob=True, logprobs_of=wrong)
    with pytest.raises(InvalidRequestError, match=r"must be 'sampled', 'tempered', 'raw' or None"):
        engine.submit(**call, return_logprob=True, logprobs_of="temperd")
    with pytest.raises(InvalidRequestError, match="logprobs_of need return_logprob=True"):
        engine.generate(**call, logprobs_of="raw")
    with pytest.raises(InvalidRequestError, match="return_sampling_mask must be a bool, got 'yes'"):
        engine.generate(**call, return_sampling_mask="yes")
    with pytest.raises(InvalidRequestError, match="return_sampling_mask has 2 entries for 1 prompts"):
        engine.generate(**call, return_sampling_mask=[True, False])


def test_masks_that_could_fill_the_memory_are_refused(engine, monkeypatch):
    """By what they may come to: an eighth of a byte per token of the vocabulary, less with top-k."""
    monkeypatch.setattr("rootlet.engine.requests.factory.MAX_MASK_BYTES", 999)
    params = {"top_p": 0.5, "max_new_tokens": 25, "n": 1}  # 40 bytes each
    with pytest.raises(InvalidParameterError, match=r"return_sampling_mask must be at most 999, got 1,000\."):
        engine.generate(input_ids=PROMPT, sampling_params=params, return_sampling_mask=True)
    for less in ({"max_new_tokens": 24}, {"top_k": 9}, {"top_p": 1.0}):
        out = engine.generate(input_ids=PROMPT, sampling_params=params | less, return_sampling_mask=True)
        assert len(out.sampling_mask) == out.completion_tokens


@settings(max_examples=200, deadline=None)
@given(data=st.data(), vocab=st.sampled_from([1, 31, 32, 33, 300, 5000]))
def test_masks_are_packed_and_unpacked(data, vocab):
    """Few tokens, many, none but a few missing, all; never larger than a bit per token and a byte."""
    counts = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=5))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    chosen = np.stack([rng.random(vocab) < (0.0, 0.001, 0.01, 0.1, 0.5, 0.999, 1.0)[c] for c in counts])
    packed = pack_masks(pack_tokens(torch.from_numpy(chosen)).numpy(), vocab)
    assert len(packed) == len(chosen)
    for one, row in zip(packed, chosen):
        assert len(one) <= 1 + 4 * -(-vocab // 32)
        ids = unpack_mask(one)
        if row.all():
            assert (one, ids) == (b"", None)
        else:
            assert ids.dtype == np.int32
            assert ids.tolist() == np.flatnonzero(row).tolist()


def test_masks_read_like_a_list():
    words = pack_tokens(torch.tensor([[True] * 40, [False] * 39 + [True], [True, False] * 20]))
    packed = pack_masks(words.numpy(), 40)
    assert packed[2].startswith(BITS)
    masks = SamplingMasks(packed)
    assert len(masks) == 3
    assert [None if m is None else m.tolist() for m in masks] == [None, [39], list(range(0, 40, 2))]
    assert masks[-1].tolist() == list(range(0, 40, 2))
    assert masks[1:] == SamplingMasks(packed[1:]) != masks
    assert pickle.loads(pickle.dumps(masks)) == masks
    assert hash(masks) == hash(SamplingMasks(packed))
