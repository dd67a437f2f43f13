"""Updates of weights on a GPU: recorded steps go on with the new values, and streams are waited for."""

from __future__ import annotations

import copy

import pytest
import torch

import rootlet

from ..models.hf import build_hf

PARAMS = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
PROMPTS = [[1, 2, 3, 4, 5], [7] * 30, [5, 6]]
OPTIONS = {"dtype": "bfloat16", "skip_tokenizer_init": True, "max_total_tokens": 4096, "deterministic": True}


@pytest.fixture(scope="module")
def models():
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = build_hf("Llama", max_position_embeddings=256)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
        made.append(model.to("cuda"))
    return made


@pytest.fixture(scope="module")
def expected(models, tmp_path_factory):
    folders, said = [], []
    for model in models:
        folder = tmp_path_factory.mktemp("model")
        copy.deepcopy(model).bfloat16().save_pretrained(folder)
        with rootlet.Engine(str(folder), **OPTIONS) as engine:
            said.append(tokens(engine))
        folders.append(str(folder))
    assert said[0] != said[1]
    return folders, said


def tokens(engine):
    return [output.token_ids for output in engine.generate(input_ids=PROMPTS, sampling_params=PARAMS)]


def passing(model):
    """Tensors of one buffer, overwritten on the current stream as soon as the next is asked for."""
    buffer = torch.empty(max(p.numel() for p in model.parameters()), device="cuda")
    for name, tensor in model.state_dict().items():
        view = buffer[: tensor.numel()].view(tensor.shape)
        yield name, view.copy_(tensor)


@pytest.mark.parametrize("kind", ["module", "passing", "bfloat16", "host", "pinned", "path"])
def test_recorded_steps_go_on_with_new_weights(models, expected, kind):
    folders, said = expected
    with rootlet.Engine(folders[0], **OPTIONS) as engine:
        for cycle in range(5):
            target = 1 - cycle % 2
            model = models[target]
            source = {
                "module": lambda: model,  # noqa: B023
                "passing": lambda: passing(model),  # noqa: B023
                "bfloat16": lambda: copy.deepcopy(model).bfloat16(),  # noqa: B023
                "host": lambda: {n: t.cpu() for n, t in model.state_dict().items()},  # noqa: B023
                "pinned": lambda: iter([(n, t.cpu().pin_memory()) for n, t in model.state_dict().items()]),  # noqa: B023
                "path": lambda: folders[target],  # noqa: B023
            }[kind]()
            engine.update_weights(source)
            assert tokens(engine) == said[target]
            assert tokens(engine) == said[target]


def test_what_the_callers_stream_has_in_line_is_waited_for(models, expected):
    folders, said = expected
    stream = torch.cuda.Stream()
    with rootlet.Engine(folders[0], **OPTIONS) as engine, torch.cuda.stream(stream):
        late = {
            name: torch.full_like(tensor, float("nan")) for name, tensor in models[1].state_dict().items()
        }
        torch.cuda._sleep(200_000_000)
        for name, tensor in models[1].state_dict().items():
            late[name].copy_(tensor)
        engine.update_weights(late)
        for tensor in late.values():
            tensor.fill_(float("nan"))  # the source is the caller's again
        assert tokens(engine) == said[1]


def test_a_source_that_raises_leaves_nothing_in_line(models, expected):
    """What it had copied into the KV pool is over before the pool is used again."""
    folders, said = expected

    def breaking():
        for count, pair in enumerate(passing(models[1])):
            torch.cuda._sleep(20_000_000)
            yield pair
            if count == 9:
                raise ArithmeticError("in the middle")

    with rootlet.Engine(folders[0], **OPTIONS) as engine, torch.cuda.stream(torch.cuda.Stream()):
        with pytest.raises(ArithmeticError, match="in the middle"):
            engine.update_weights(breaking())
        assert tokens(engine) == said[0]


def test_a_trainer_in_the_engines_memory(models, expected):
    folders, _ = expected
    model = copy.deepcopy(models[0]).bfloat16()
    ids = torch.arange(40, device="cuda").view(2, 20) % 90

    def train(module):
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            module(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()

    with rootlet.Engine(folders[1], **OPTIONS) as engine:
        engine.share_weights(model)
        tokens(engine)
        train(model)
        assert engine.weights_changed().bytes == 0
        for name, parameter in model.named_parameters():
            assert torch.equal(engine.weight(name), parameter)
        with rootlet.Engine(folders[1], **OPTIONS) as other:
            other.update_weights(model)
            assert tokens(other) == tokens(engine)
