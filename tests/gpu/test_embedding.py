"""Embedding models, classifiers and reward models against transformers on the same GPU, in fp32."""

from __future__ import annotations

import pytest
import torch

from ..models.hf import build_hf, hf_embedding, hf_scores
from .tiny import build, random_prompt

PROMPTS = [random_prompt(length, length) for length in (1, 2, 17, 40, 63, 64, 300)]
PROMPTS.append(PROMPTS[-1][:290] + random_prompt(30, 7))  # two share a prefix


def saved(family, kind, root, **fields):
    """transformers' model of random weights on the GPU, and the folder it is saved in."""
    model = build_hf(family, kind=kind, max_position_embeddings=512, **fields).cuda()
    model.save_pretrained(root)
    return model, str(root)


@pytest.mark.parametrize(
    ("family", "kind", "options"),
    [
        ("Llama", "Model", {}),
        ("Qwen2", "Model", {"chunked_prefill_size": 7, "page_size": 1, "disable_overlap_schedule": True}),
        ("Mistral", "ForCausalLM", {"is_embedding": True}),
    ],
)
def test_embeddings(family, kind, options, tmp_path):
    model, folder = saved(family, kind, tmp_path)
    with build(folder, **options) as engine:
        outputs = engine.encode(input_ids=PROMPTS)
        again = [engine.encode(input_ids=ids) for ids in PROMPTS]  # one by one, and cached
    for ids, output, repeated in zip(PROMPTS, outputs, again):
        want = hf_embedding(model if kind == "Model" else model.model, ids)
        assert repeated.cached_tokens == len(ids) - 1  # the last token is always computed
        for got in (torch.tensor(output.embedding), torch.tensor(repeated.embedding)):
            assert torch.cosine_similarity(got, want, dim=0) > 1 - 1e-5
            assert got.norm().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("family", "labels"), [("Llama", 1), ("Qwen2", 3)])
def test_scores_of_reward_models_and_classifiers(family, labels, tmp_path):
    model, folder = saved(family, "ForSequenceClassification", tmp_path, num_labels=labels)
    with build(folder) as engine:
        outputs = engine.classify(input_ids=PROMPTS)
        again = [engine.classify(input_ids=ids) for ids in PROMPTS]
    want = torch.stack([hf_scores(model, ids) for ids in PROMPTS])
    assert want.shape == (len(PROMPTS), labels)
    assert want.abs().max() > 1
    for found in (outputs, again):
        got = torch.tensor([output.embedding for output in found])
        torch.testing.assert_close(got, want, atol=1e-3, rtol=0)
