"""Embeddings, classifiers and reward models against transformers, and what they share with generation."""

from __future__ import annotations

import asyncio

import pytest
import torch

import rootlet
from rootlet.errors import ConfigError, InvalidRequestError

from ..models.hf import build_hf, hf_embedding, hf_scores

FAMILIES = ["Llama", "Mistral", "Qwen2"]
PROMPTS = [[5 + (7 * i + 3 * j) % 90 for j in range(n)] for i, n in enumerate((1, 2, 17, 40, 40, 63, 100))]
PROMPTS[4] = PROMPTS[3][:35] + PROMPTS[4][35:]  # two share a prefix


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


def saved(family, kind, root, **fields):
    """transformers' model of random weights, and the folder it is saved in."""
    model = build_hf(family, kind=kind, **fields)
    folder = root / f"{family}{kind}{len(fields)}"
    model.save_pretrained(folder)
    return model, str(folder)


def build(folder, **options):
    options = {"dtype": "float32", "device": "cpu", "max_total_tokens": 2048} | options
    return rootlet.Engine(folder, skip_tokenizer_init=True, **options)


OPTIONS = [{}, {"chunked_prefill_size": 7}, {"page_size": 1, "disable_overlap_schedule": False}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_embedding_models(family, options, tmp_path):
    model, folder = saved(family, "Model", tmp_path)
    with build(folder, **options) as engine:
        outputs = engine.encode(input_ids=PROMPTS)
        again = engine.encode(input_ids=PROMPTS[3])
        info = engine.get_server_info()
    assert info["is_embedding"] is True
    for ids, output in zip(PROMPTS, outputs):
        want = hf_embedding(model, ids)
        got = torch.tensor(output["embedding"])
        assert torch.cosine_similarity(got, want, dim=0) > 1 - 1e-6
        assert got.norm().item() == pytest.approx(1, abs=1e-5)
        assert output["meta_info"]["prompt_tokens"] == len(ids)
    assert [output["index"] for output in outputs] == list(range(len(PROMPTS)))
    assert again.cached_tokens == len(PROMPTS[3]) - 1  # the last token is always computed
    assert again["embedding"] == pytest.approx(outputs[3]["embedding"], abs=1e-5)
    assert "index" not in again


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_classifiers_and_reward_models(family, labels, tmp_path):
    model, folder = saved(family, "ForSequenceClassification", tmp_path, num_labels=labels)
    with build(folder) as engine:
        outputs = engine.classify(input_ids=PROMPTS)
        encoded = engine.encode(input_ids=PROMPTS)
    for ids, output in zip(PROMPTS, outputs):
        assert len(output.embedding) == labels
        want = hf_scores(model, ids)
        torch.testing.assert_close(torch.tensor(output.embedding), want, atol=1e-4, rtol=1e-4)
    for output, other in zip(outputs, encoded):
        assert output.embedding == pytest.approx(other.embedding, abs=1e-5)


def test_a_language_model_embeds_when_asked(family, tmp_path):
    model, folder = saved(family, "ForCausalLM", tmp_path)
    with build(folder, is_embedding=True) as engine:
        outputs = engine.encode(input_ids=PROMPTS)
        with pytest.raises(InvalidRequestError, match="labels"):
            engine.classify(input_ids=PROMPTS)
    for ids, output in zip(PROMPTS, outputs):
        want = hf_embedding(model.model, ids)
        assert torch.cosine_similarity(torch.tensor(output.embedding), want, dim=0) > 1 - 1e-6


def test_an_engine_does_one_or_the_other(tmp_path):
    _, folder = saved("Llama", "Model", tmp_path)
    with build(folder) as engine:
        for call in (engine.generate, engine.submit):
            with pytest.raises(InvalidRequestError, match="encode"):
                call(input_ids=[5, 6])
    _, folder = saved("Llama", "ForCausalLM", tmp_path)
    with build(folder) as engine:
        with pytest.raises(InvalidRequestError, match="is_embedding=True"):
            engine.encode(input_ids=[5, 6])
        with pytest.raises(InvalidRequestError, match="labels"):
            engine.classify(input_ids=[5, 6])


def test_async_and_refusals(tmp_path):
    _, folder = saved("Qwen2", "ForSequenceClassification", tmp_path)
    with build(folder) as engine:

        async def main():
            encoded = await engine.async_encode(input_ids=PROMPTS)
            return encoded, await engine.async_classify(input_ids=PROMPTS)

        encoded, classified = (
            torch.tensor([output.embedding for output in outputs]) for outputs in asyncio.run(main())
        )
        torch.testing.assert_close(encoded, classified)
        for bad in ({}, {"input_ids": []}, {"input_ids": [97]}, {"input_ids": [[1], []]}, {"prompt": "text"}):
            with pytest.raises(InvalidRequestError):
                engine.encode(**bad)
        assert engine.encode(input_ids=PROMPTS[0], rid="mine").rid == "mine"


def test_a_model_class_without_embeddings_is_refused(tiny_model, monkeypatch):
    from rootlet.models.llama import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "compute_embeddings", None)
    with pytest.raises(ConfigError, match="compute_embeddings"):
        rootlet.Engine(tiny_model, load_format="dummy", skip_tokenizer_init=True, is_embedding=True)
