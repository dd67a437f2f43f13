"""A few lines every sampler test needs."""

from __future__ import annotations

import pytest
import torch

from rootlet.sampling.batch import SamplingBatch
from rootlet.sampling.params import SamplingParams
from rootlet.sampling.rows import SamplingRow
from rootlet.sampling.sampler import SampleOutput, Sampler


@pytest.fixture
def sample():
    """``sample(logits, rows, positions=..., tokens=..., allowed_mask=...) -> SampleOutput`` on the CPU."""

    def run(logits, rows, positions=None, tokens=None, allowed_mask=None) -> SampleOutput:
        vocab = logits.shape[1]
        if positions is None:
            positions = torch.tensor([row.prompt_len for row in rows])
        if tokens is None:
            tokens = torch.zeros(max(row.slot for row in rows) + 1, 64, dtype=torch.int32)
        batch = SamplingBatch.build(rows, vocab, "cpu")
        return Sampler(vocab, "cpu").sample(logits, batch, positions, tokens, allowed_mask)

    return run


@pytest.fixture
def row():
    """``row(seed=..., slot=..., prompt_len=..., banned=..., logprobs=..., ..., **params)``."""

    def make(
        seed=0,
        slot=1,
        prompt_len=1,
        banned=(),
        logprobs=False,
        top_logprobs=0,
        logprobs_of=None,
        sampling_mask=False,
        processor=None,
        **params,
    ) -> SamplingRow:
        return SamplingRow(
            SamplingParams(**params),
            seed,
            slot,
            prompt_len,
            tuple(banned),
            logprobs,
            top_logprobs,
            logprobs_of,
            sampling_mask,
            processor,
        )

    return make
