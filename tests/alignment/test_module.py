"""What an aligned module is to its host: gradients, padding, logits, copies, and how it is given back."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import rootlet
from rootlet.errors import AlignmentError, ConfigError, InvalidRequestError, ModelError, WeightsError

from ..models.hf import build_hf, one_thread, random_ids  # noqa: F401

CASES = {
    "llama": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 9}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "gelu": ("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
}
LENGTHS = (12, 31, 2, 20)


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids and their mask; tokens under the padding are no particular ones."""
    ids = torch.tensor(random_ids(len(LENGTHS) * 40, seed=3)).view(len(LENGTHS), 40)
    columns = torch.arange(40)
    masks = [columns >= 40 - n if side == "left" else columns < n for n in LENGTHS]
    return ids, torch.stack(masks).long()


def by_transformers(module, ids, mask, temperature: float) -> torch.Tensor:
    """Log-probabilities [B, T - 1] as token_logprobs has them."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = module(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    values = torch.log_softmax(logits[:, :-1].float() / temperature, -1)
    values = values.gather(2, ids[:, 1:, None]).squeeze(2)
    return values.where((mask[:, 1:] & mask[:, :-1]).bool(), torch.zeros(()))


def gradients(module, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of some function of values [B, T - 1] whose gradient is different everywhere."""
    module.zero_grad()
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    (weights * values).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_transformers(case, checkpointing):
    name, fields = CASES[case]
    module = build_hf(name, **fields).train()
    ids, mask = padded("left")
    expected = by_transformers(module, ids, mask, 0.7)
    expected_gradients = gradients(module, expected)
    if checkpointing:
        getattr(module, "activation_checkpointing_enable", module.gradient_checkpointing_enable)()
    with rootlet.align(module):
        values = rootlet.token_logprobs(module, ids, 0.7, attention_mask=mask)
        found = gradients(module, values)
        logits = by_transformers(module, ids, mask, 0.7)
        by_logits = gradients(module, logits)
    torch.testing.assert_close(values, expected, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=2e-5)
    for parameter, gradient in expected_gradients.items():
        limit = 1e-4 * gradient.abs().max().item()
        assert limit > 0
        torch.testing.assert_close(found[parameter], gradient, atol=limit, rtol=1e-3, msg=parameter)
        torch.testing.assert_close(by_logits[parameter], gradient, atol=limit, rtol=1e-3, msg=parameter)


def test_gradients_of_bf16_are_close():
    module = build_hf("Qwen2")
    ids, mask = padded("right")
    expected = gradients(module, by_transformers(module, ids, mask, 1.0))
    with rootlet.align(module, dtype="bfloat16"):
        found = gradients(module, rootlet.token_logprobs(module, ids, attention_mask=mask))
    for name, gradient in expected.items():
        likeness = torch.nn.functional.cosine_similarity(found[name].flatten(), gradient.flatten(), 0)
        assert likeness > 0.99, name


def test_frozen_parameters_get_no_gradients():
    module = build_hf("Llama")
    module.requires_grad_(False)
    module.model.layers[1].self_attn.k_proj.weight.requires_grad_(True)
    with rootlet.align(module):
        sum(v.sum() for v in rootlet.token_logprobs(module, [random_ids(9, 1)])).backward()
    given = [name for name, parameter in module.named_parameters() if parameter.grad is not None]
    assert given == ["model.layers.1.self_attn.k_proj.weight"]


def test_padding_on_either_side_changes_no_bit():
    module = build_hf("Llama")
    with rootlet.align(module), torch.no_grad():
        for side in ("left", "right"):
            ids, mask = padded(side)
            rows = [row[keep.bool()].tolist() for row, keep in zip(ids, mask)]
            alone = [rootlet.token_logprobs(module, [row])[0] for row in rows]
            values = rootlet.token_logprobs(module, ids, attention_mask=mask)
            assert values.shape == (len(LENGTHS), 39)
            for row, keep, expected in zip(values, mask, alone):
                inside = (keep[1:] & keep[:-1]).bool()
                assert torch.equal(row[inside], expected)
                assert not row[~inside].any()
            logits = module(ids, attention_mask=mask).logits
            for row, keep, own in zip(logits, mask, rows):
                assert torch.equal(row[keep.bool()], module(torch.tensor([own])).logits[0])


def test_logits_are_fp32_and_may_be_few():
    module = build_hf("Llama").bfloat16()
    ids = torch.tensor([random_ids(9, 1)])
    with rootlet.align(module), torch.no_grad():
        logits = module(ids).logits
        assert logits.dtype is torch.float32
        assert torch.equal(module(ids, logits_to_keep=3).logits, logits[:, -3:])
        values = rootlet.token_logprobs(module, ids)
        expected = torch.log_softmax(logits[:, :-1], -1).gather(2, ids[:, 1:, None]).squeeze(2)
        assert torch.equal(values, expected)


def test_a_few_log_probabilities_are_the_same_ones():
    module = build_hf("Llama")
    ids, mask = padded("left")
    rows = [row[keep.bool()].tolist() for row, keep in zip(ids, mask)]
    with rootlet.align(module), torch.no_grad():
        whole = rootlet.token_logprobs(module, ids, attention_mask=mask)
        each = rootlet.token_logprobs(module, rows)
        for kept in (1, 7, 39, 50):
            few = rootlet.token_logprobs(module, ids, attention_mask=mask, logits_to_keep=kept)
            assert torch.equal(few, whole[:, -kept:])
            some = rootlet.token_logprobs(module, rows, logits_to_keep=kept)
            assert all(torch.equal(a, b[-kept:]) for a, b in zip(some, each, strict=True))


def test_losses_of_labels_are_computed():
    module = build_hf("Llama")
    ids = torch.tensor([random_ids(20, 1)])
    expected = module(ids, labels=ids).loss
    with rootlet.align(module):
        loss = module(ids, labels=ids).loss
        loss.backward()
    torch.testing.assert_close(loss, expected)


def test_undo_gives_everything_back(tmp_path):
    module = build_hf("Llama")
    ids = torch.tensor([random_ids(9, 1)])
    before = module(ids).logits
    parts = (module, module.model, module.lm_head)
    attributes = [set(vars(part)) for part in parts]
    names = list(module.state_dict())
    alignment = rootlet.align(module)
    assert list(module.state_dict()) == names
    module.save_pretrained(tmp_path)
    saved = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(saved(ids).logits, before)
    with pytest.raises(AlignmentError, match="aligned already"):
        rootlet.align(module)
    alignment.undo()
    alignment.undo()
    assert [set(vars(part)) for part in parts] == attributes
    assert torch.equal(module(ids).logits, before)
    with pytest.raises(AlignmentError, match=r"not aligned; call rootlet\.align"):
        rootlet.token_logprobs(module, [[1, 2]])


def test_a_copy_is_aligned_by_itself():
    module = build_hf("Llama")
    ids = [random_ids(9, 1)]
    with rootlet.align(module), torch.no_grad():
        [values] = rootlet.token_logprobs(module, ids)
        twin = copy.deepcopy(module)
        twin.lm_head.weight += 1
        [changed] = rootlet.token_logprobs(twin, ids)
        assert not torch.equal(changed, values)
        twin.lm_head.weight.copy_(module.lm_head.weight)
        assert torch.equal(rootlet.token_logprobs(twin, ids)[0], values)
    assert torch.equal(rootlet.token_logprobs(twin, ids)[0], values)


# ---- refusals --------------------------------------------------------------------------------------


@pytest.fixture
def module():
    module = build_hf("Llama", num_hidden_layers=1)
    with rootlet.align(module):
        yield module


def test_modules_that_cannot_be_aligned():
    with pytest.raises(ModelError, match=r"a model of transformers, .* got Linear"):
        rootlet.align(torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"DataParallel around the model\. Align .*module\.module"):
        rootlet.align(torch.nn.DataParallel(build_hf("Llama")))
    with pytest.raises(ModelError, match=r"'GPT2LMHeadModel'.* not supported"):
        rootlet.align(build_other())
    odd = build_hf("Llama")
    odd.model.layers[0].extra = torch.nn.Linear(3, 3)
    with pytest.raises(WeightsError, match=r"not known to the engine: model\.layers\.0\.extra"):
        rootlet.align(odd)
    odd = build_hf("Llama")
    odd.model.layers[0].mlp.lora_A = torch.nn.Linear(3, 3)
    with pytest.raises(ModelError, match=r"adapters .* not merged"):
        rootlet.align(odd)
    odd = build_hf("Llama", tie_word_embeddings=True)
    odd.lm_head.weight = torch.nn.Parameter(odd.lm_head.weight.detach().clone())
    with pytest.raises(WeightsError, match=r"lm_head\.weight is not tied"):
        rootlet.align(odd)
    with torch.device("meta"):
        odd = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, hidden_size=64, num_attention_heads=4))
    with pytest.raises(ModelError, match="meta; the kernels run on cpu and cuda"):
        rootlet.align(odd)


def build_other():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9))


def test_options_that_are_impossible():
    module = build_hf("Llama", num_hidden_layers=1)
    with pytest.raises(ConfigError, match="dtype must be one of float32"):
        rootlet.align(module, dtype="int8")
    with pytest.raises(ConfigError, match="bfloat16 or float32"):
        rootlet.align(module, dtype="float16")
    with pytest.raises(ConfigError, match="context_length must be at least 1"):
        rootlet.align(module, context_length=0)
    module.lm_head.bfloat16()
    with pytest.raises(ConfigError, match="of several types"):
        rootlet.align(module)


def test_what_would_compute_differently(module):
    ids = torch.tensor([[1, 2, 3]])
    for call in (lambda: module(ids), lambda: rootlet.token_logprobs(module, ids)):
        with pytest.raises(AlignmentError, match="Autocast is on"), torch.autocast("cpu", torch.bfloat16):
            call()
        module.config.attention_dropout = 0.1
        call()
        module.train()
        with pytest.raises(AlignmentError, match=r"attention_dropout is 0\.1"):
            call()
        module.eval()
    module.compile(backend="eager")
    with pytest.raises(AlignmentError, match="cannot be compiled"):
        rootlet.token_logprobs(module, ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs_embeds": torch.zeros(1, 3, 64)}, "got inputs_embeds"),
        ({"input_ids": torch.tensor([[1, 2]]), "output_attentions": True}, "output_attentions"),
        ({"input_ids": torch.tensor([[1, 97]])}, "run from 1 to 97; the model has 0 to 96"),
        ({"input_ids": torch.tensor([[-1, 9]])}, "run from -1"),
        ({"input_ids": torch.zeros(1, 129, dtype=torch.int64)}, "129 tokens; the context has 128"),
        (
            {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.tensor([[1, 0, 1]])},
            "padding between the tokens of row 0",
        ),
        ({"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.zeros(1, 2)}, "no tokens"),
        ({"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.zeros(1, 1, 2, 2)}, r"\[B, T\]"),
        ({"input_ids": torch.tensor([[1, 2]]), "position_ids": torch.tensor([[0, 0]])}, "one by one"),
    ],
)
def test_passes_that_are_no_whole_sequences(module, arguments, message):
    with pytest.raises(InvalidRequestError, match=message):
        module(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "at least one sequence"),
        (([[1], []],), "a token in each"),
        (([1, 2],), "a list of sequences"),
        (([[1, 2]], 0.0), r"from 1e-6 to 1e30, got 0\.0"),
        (([[1, 2]], "warm"), "'warm'"),
        ((torch.zeros(2, 2),), "integers"),
        (([[1, 2]], 1.0, 0), "logits_to_keep must be at least 1"),
    ],
)
def test_ids_and_temperatures_that_are_impossible(module, arguments, message):
    names = ("ids", "temperature", "logits_to_keep")
    with pytest.raises(InvalidRequestError, match=message):
        rootlet.token_logprobs(module, **dict(zip(names, arguments)))


def test_sequences_of_one_token_have_none(module):
    assert [len(values) for values in rootlet.token_logprobs(module, [[5], [5, 6, 7]])] == [0, 2]
    assert rootlet.token_logprobs(module, torch.tensor([[5]])).shape == (1, 0)


def test_generation_is_left_to_the_engine(module):
    with pytest.raises(InvalidRequestError, match="Generate with the engine"):
        module.generate(torch.tensor([[1, 2]]), max_new_tokens=2)
