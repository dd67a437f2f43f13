"""Every family's distributions, all of the vocabulary, against transformers in fp32 on the same GPU."""

from __future__ import annotations

import pytest
import torch

from .tiny import FAMILIES, build, logits_after, random_prompt, reference, saved

# fp32 sums in another order differ by 1e-5 here; TF32 anywhere would show as 1e-3. On the wide model
# transformers' own log-probabilities in fp32 are 6e-4 away from those in fp64.
TOLERANCE = {"qwen2": 1.5e-3}
OTHERWISE = 2e-4
LENGTHS = [1, 2, 16, 17, 63, 130, 500, 900]
NEW_TOKENS = 20


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("families")


def distributions(output) -> torch.Tensor:
    """Log-probabilities ``[positions, V]`` of a scored output with all of the vocabulary as alternatives."""
    rows = output.input_top_logprobs[1:] + output.output_top_logprobs
    values = torch.empty(len(rows), 97)
    for row, top in zip(values, rows):
        assert len(top) == 97
        row[[token for _, token, _ in top]] = torch.tensor([logprob for logprob, _, _ in top])
    return values


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunked_prefill_size": 48},
        {"disable_cuda_graph": True, "page_size": 1},
        {"attention_backend": "triton", "page_size": 64},
        {"attention_backend": "torch"},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "defaults",
)
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_of_every_position(root, family, options):
    """Prefill, chunks and decode; all requests in one batch."""
    prompts = [random_prompt(length, seed) for seed, length in enumerate(LENGTHS)]
    with build(saved(family, root), **options) as engine:
        outputs = engine.generate(
            input_ids=prompts,
            sampling_params={"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True},
            return_logprob=True,
            logprob_start_len=0,
            top_logprobs_num=97,
        )
    model = reference(family)
    for prompt, output in zip(prompts, outputs):
        ids = prompt + list(output.token_ids)
        logits = logits_after(model, ids[:1], ids[1:])
        assert logits.abs().max() > 1  # large enough for the tolerance to mean something
        want = torch.log_softmax(logits, -1).cpu()
        torch.testing.assert_close(distributions(output), want, atol=TOLERANCE.get(family, OTHERWISE), rtol=0)
