"""Weights of a running engine are replaced: all or none, and nothing stale is served."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import random
import threading
from collections.abc import Iterator

import pytest
import torch

import rootlet
from rootlet.engine.schedule.invariants import check_invariants
from rootlet.errors import InvalidParameterError, InvalidRequestError, WeightsError

from ..models.hf import build_hf

PARAMS = {"temperature": 0, "max_new_tokens": 10, "ignore_eos": True}
PROMPTS = [[1, 2, 3, 4, 5], [7] * 30, [7] * 30 + [9, 9], [5, 6]]
OPTIONS = {"dtype": "float32", "device": "cpu", "skip_tokenizer_init": True, "max_total_tokens": 512}
KINDS = ("module", "mapping", "pairs", "iterator", "object", "path", "block", "bucket")


def scaled(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Three sets of weights of one model: (folder, module, what a fresh engine generates with them)."""
    made = []
    for seed in range(3):
        folder = tmp_path_factory.mktemp(f"weights{seed}")
        model = scaled(build_hf("Llama", max_position_embeddings=256), seed)
        model.save_pretrained(folder)
        with rootlet.Engine(str(folder), **OPTIONS) as engine:
            outputs = engine.generate(input_ids=PROMPTS, sampling_params=PARAMS)
            made.append(
                (str(folder), model, [output.token_ids for output in outputs], engine.weights_checksum())
            )
    assert len({str(tokens) for _, _, tokens, _ in made}) == 3
    return made


@pytest.fixture(scope="module")
def engine(versions):
    with rootlet.Engine(versions[0][0], **OPTIONS) as made:
        yield made


@pytest.fixture(autouse=True)
def at_first(engine, versions):
    """Every test begins with the first weights and leaves nothing behind."""
    if engine.weights_checksum() != versions[0][3]:
        engine.update_weights(versions[0][0])
    yield
    engine.resume()
    assert engine.flush_cache()
    stats = engine.stats()
    assert stats.pages_free == stats.pages_total
    engine._loop.call(lambda core: check_invariants(core.scheduler))


class Described:
    """What announces its tensors, and is iterated."""

    def __init__(self, tensors):
        self.tensors = tensors

    def metadata(self):
        return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]

    def __iter__(self):
        return passing(self.tensors.items())


def passing(named) -> Iterator:
    """Pairs whose tensors are overwritten as soon as the next is asked for."""
    for name, tensor in named:
        copy = tensor.clone()
        yield name, copy
        copy.fill_(float("nan"))


def bucket_of(named):
    entries, parts, offset = [], [], 0
    for name, tensor in named:
        raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
        entries.append(
            {"name": name, "dtype": str(tensor.dtype), "shape": list(tensor.shape), "offset": offset}
        )
        parts.append(raw)
        offset += len(raw)
    return torch.cat(parts), entries


def update(engine, kind, folder, model, **options):
    """Give the engine these weights in one of many ways."""
    state = model.state_dict()
    if kind in ("block", "bucket"):
        with engine.weight_update(**options) as block:
            if kind == "block":
                for name, tensor in passing(state.items()):
                    block.add(name, tensor)
            else:
                half = len(state) // 2
                for part in (list(state.items())[:half], list(state.items())[half:]):
                    buffer, entries = bucket_of(part)
                    block.add_bucket(buffer, entries)
                    buffer.zero_()
        return block.result
    source = {
        "module": model,
        "mapping": state,
        "pairs": list(state.items()),
        "iterator": passing(state.items()),
        "object": Described(state),
        "path": folder,
    }[kind]
    return engine.update_weights(source, **options)


def tokens_of(outputs):
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("staging", ["auto", "host"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_what_a_fresh_engine_has(engine, versions, kind, staging):
    folder, model, tokens, sums = versions[1]
    assert tokens_of(engine.generate(input_ids=PROMPTS, sampling_params=PARAMS)) == versions[0][2]
    before = engine.weights_version
    done = update(engine, kind, folder, model, staging=staging)
    assert (done.version, done.aborted) == (before + 1, 0)
    assert done.tensors == len(sums)
    assert done.bytes == sum(p.numel() * 4 for p in model.parameters())
    assert done.pages_flushed > 0
    assert engine.weights_checksum() == sums
    outputs = engine.generate(input_ids=PROMPTS, sampling_params=PARAMS)
    assert tokens_of(outputs) == tokens
    assert {output.weights_version for output in outputs} == {before + 1}


def begun_request(engine, index, num_tokens):
    """A request that has its first token, and who reads it."""
    params = PARAMS | {"max_new_tokens": num_tokens}
    handle = engine.submit(input_ids=PROMPTS[index], sampling_params=params)
    reader = iter(handle)
    next(reader)
    return handle, reader


def check_crossing(output, old, mode, expected):
    """A request of 40 tokens that may have crossed the update after version ``old``."""
    spans = output.weights_versions
    if output.finish_reason["type"] == "abort":
        assert mode == "abort"
    else:
        assert len(output.token_ids) == 40
    ends = [0, *(span.end for span in spans)]
    assert [span.start for span in spans] == ends[:-1]
    assert ends[-1] == len(output.token_ids)
    assert {span.version for span in spans} <= {old, old + 1}
    if spans and spans[0].version == old:
        count = min(spans[0].end, len(expected))
        assert output.token_ids[:count] == expected[:count]


def resident_bytes():
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def test_random_updates_between_requests_that_run(engine, versions):
    """A hundred of every kind and mode: what crosses none is as from a fresh engine, spans are right."""
    choose = random.Random(3)
    present = 0
    resident = []
    for _ in range(100):
        resident.append(resident_bytes())
        asked = [choose.randrange(len(PROMPTS)) for _ in range(choose.randrange(4))]
        begun = [begun_request(engine, index, 40) for index in asked]
        mode = choose.choice(["abort", "finish", "recompute", "keep"])
        following = choose.randrange(3)
        folder, model, tokens, _ = versions[following]
        options = {"on_running": mode, "flush_cache": mode != "keep" and choose.random() < 0.7}
        old = engine.weights_version
        done = update(engine, choose.choice(KINDS), folder, model, **options)
        assert done.version == old + 1
        index = choose.randrange(len(PROMPTS))
        after = engine.generate(input_ids=PROMPTS[index], sampling_params=PARAMS)
        assert after.token_ids == tokens[index]
        assert after.weights_versions == ((done.version, 0, 10),)
        for index, (handle, _) in zip(asked, begun):
            check_crossing(handle.result(), old, mode, versions[present][2][index])
        present = following
    assert engine.weights_checksum() == versions[present][3]
    kept = 60 * engine.update_weights(versions[present][0]).bytes  # of 60 updates, if each kept its weights
    assert max(resident[90:]) - max(resident[:30]) < kept / 2


@contextlib.contextmanager
def stepped(versions, **options):
    """An engine driven by hand, whose requests are where the test leaves them."""
    with rootlet.Engine(versions[0][0], step_by_hand=True, **OPTIONS, **options) as engine:

        def begin(index, num_tokens, steps=4):
            params = PARAMS | {"max_new_tokens": num_tokens}
            handle = engine.submit(input_ids=PROMPTS[index], sampling_params=params)
            for _ in range(steps):
                engine.step()
            return handle

        yield engine, begin


@pytest.mark.parametrize("mode", ["recompute", "keep"])
def test_requests_go_on_with_the_new_weights(versions, mode):
    """With their KV computed anew they go on as a fresh engine would from the same tokens."""
    with stepped(versions) as (engine, begin):
        handle = begin(0, 60)
        engine.update_weights(versions[1][1], on_running=mode, flush_cache=mode == "recompute")
        output = handle.result()
        (old, start, cut), (new, again, end) = output.weights_versions
        assert (start, again, end) == (0, cut, 60)
        assert new == old + 1 == output.weights_version == output.meta_info["weights_version"]
        assert output.meta_info["weights_versions"][0] == {"version": old, "start": 0, "end": cut}
        if mode == "recompute":
            rest = engine.generate(
                input_ids=[*PROMPTS[0], *output.token_ids[:cut]],
                sampling_params=PARAMS | {"max_new_tokens": 60 - cut},
            )
            assert output.token_ids[cut:] == rest.token_ids


def test_what_old_weights_computed_is_not_found(engine, versions):
    prompt = [3] * 64
    engine.generate(input_ids=prompt, sampling_params=PARAMS)
    assert engine.generate(input_ids=prompt, sampling_params=PARAMS).cached_tokens == 63
    engine.update_weights(versions[1][1], flush_cache=False)
    assert engine.generate(input_ids=prompt, sampling_params=PARAMS).cached_tokens == 0
    assert engine.generate(input_ids=prompt, sampling_params=PARAMS).cached_tokens == 63


class Bang(Exception):
    """Raised by sources in the middle."""


def breaking(named):
    for count, pair in enumerate(named):
        if count == 7:
            raise Bang("in the middle")
        yield pair


@pytest.mark.parametrize("staging", ["auto", "host"])
@pytest.mark.parametrize("kind", ["iterator", "object", "mapping", "block", "bucket", "path"])
def test_a_source_that_breaks_changes_nothing(engine, versions, kind, staging, monkeypatch):
    state = versions[1][1].state_dict()
    version = engine.weights_version

    class Breaking(dict):
        def items(self):
            return breaking(super().items())

    class BreakingObject(Described):
        def __iter__(self):
            return breaking(super().__iter__())

    sources = {
        "iterator": lambda: breaking(state.items()), "object": lambda: BreakingObject(state),
        "mapping": lambda: Breaking(state), "path": lambda: versions[1][0],
    }  # fmt: skip
    if kind == "path":
        from rootlet.engine.weights import source

        real = source.open_weights

        def broken(*args):
            checkpoint = real(*args)
            object.__setattr__(checkpoint, "tensors", breaking(checkpoint.tensors))
            return checkpoint

        monkeypatch.setattr(source, "open_weights", broken)

    def attempt():
        if kind not in ("block", "bucket"):
            engine.update_weights(sources[kind](), staging=staging)
        with engine.weight_update(staging=staging) as block:
            if kind == "bucket":
                block.add_bucket(*bucket_of(list(state.items())[:5]))
                raise Bang
            for pair in breaking(state.items()):
                block.add(*pair)

    with pytest.raises(Bang):
        attempt()
    assert engine.weights_version == version
    assert engine.weights_checksum() == versions[0][3]
    assert tokens_of(engine.generate(input_ids=PROMPTS, sampling_params=PARAMS)) == versions[0][2]


def test_some_weights_alone(engine, versions):
    name = "model.layers.1.self_attn.k_proj.weight"
    new = versions[1][1].state_dict()[name]
    engine.update_weights({name: new}, partial=True)
    sums = engine.weights_checksum()
    assert {key for key in sums if sums[key] != versions[0][3][key]} == {name}
    assert torch.equal(engine.weight(name), new)
    assert engine.get_weights_by_name(name, 2) == new[:2].tolist()


def test_documented_forms(engine, versions, tmp_path):
    state = versions[2][1].state_dict()
    assert engine.update_weights_from_tensor(list(state.items())) == (True, "Success")
    assert engine.weights_checksum() == versions[2][3]
    assert engine.update_weights_from_disk(versions[0][0]) == (True, "Succeeded to update model weights.")
    assert engine.weights_checksum() == versions[0][3]
    done, message = engine.update_weights_from_disk(str(tmp_path / "nowhere"))
    assert not done
    assert message.startswith("Failed to get weights iterator: ")
    assert engine.get_weights_by_name("no.such.weight") is None
    assert engine.weight("no.such.weight") is None
    assert len(engine.get_weights_by_name("model.embed_tokens.weight")) == 97
    with pytest.raises(WeightsError, match=r"no weight 'model\.norm\.wieght'.*model\.norm\.weight"):
        engine.weights_checksum(["model.norm.wieght"])


def test_labels(engine, versions):
    model = versions[0][1]
    with_string = engine.update_weights(model, version="step-7")
    assert with_string.version == "step-7"
    assert engine.generate(input_ids=[1], sampling_params=PARAMS).weights_version == "step-7"
    assert isinstance(engine.update_weights(model).version, int)
    assert engine.update_weights(model, version=10**6).version == 10**6
    with pytest.raises(InvalidParameterError, match="does not rise: the weights are at 1000000"):
        engine.update_weights(model, version=10**6)
    assert engine.weights_version == 10**6


def test_pausing(versions):
    with stepped(versions) as (engine, begin):
        handle = begin(0, 100)
        assert engine.pause("keep") == 0
        count = len(handle.latest().token_ids)
        waiting = engine.submit(input_ids=PROMPTS[1], sampling_params=PARAMS)
        assert engine.stats().num_running == 1
        engine.update_weights(versions[0][1], on_running="recompute")  # stays paused
        for _ in range(3):
            engine.step()
        assert len(handle.latest().token_ids) == count
        assert not waiting.done()
        engine.resume()
        engine.resume()
        assert waiting.result().token_ids == versions[0][2][1]
        assert len(handle.result().token_ids) == 100


def test_requests_wait_while_another_thread_has_paused(engine, versions):
    engine.pause()
    waiting = engine.submit(input_ids=PROMPTS[1], sampling_params=PARAMS)
    assert engine.stats().num_waiting == 1
    assert not waiting.done()
    engine.resume()
    assert waiting.result().token_ids == versions[0][2][1]


def test_a_pause_ends_what_runs_and_what_waits(versions):
    with stepped(versions, max_running_requests=1) as (engine, begin):
        handles = [begin(0, 200), begin(0, 10, steps=0), begin(0, 10, steps=0)]
        assert engine.pause("abort") == 3
        outputs = [handle.result() for handle in handles]
        assert [output.finish_reason["type"] for output in outputs] == ["abort"] * 3
        assert outputs[0].token_ids
        assert outputs[2].token_ids == ()
        assert outputs[2].weights_versions == ()


def test_finishing_serves_first_what_has_begun(versions):
    with stepped(versions, max_running_requests=1) as (engine, begin):
        begun, late = begin(0, 10), begin(0, 10, steps=0)
        engine.update_weights(versions[1][1], on_running="finish")
        assert begun.done()
        assert begun.result().token_ids == versions[0][2][0]
        assert late.result().token_ids == versions[1][2][0]


def test_an_engine_driven_by_hand(versions):
    with rootlet.Engine(versions[0][0], step_by_hand=True, **OPTIONS) as engine:
        handle = engine.submit(input_ids=PROMPTS[0], sampling_params=PARAMS)
        engine.step()
        engine.update_weights(versions[1][1], on_running="finish")
        assert handle.result().token_ids == versions[0][2][0]
        engine.pause()
        with pytest.raises(InvalidRequestError, match=r"paused.*resume\(\)"):
            engine.generate(input_ids=PROMPTS[0], sampling_params=PARAMS)
        engine.resume()
        assert engine.generate(input_ids=PROMPTS[0], sampling_params=PARAMS).token_ids == versions[1][2][0]


def test_two_updates_at_once_take_turns(engine, versions):
    threads = [threading.Thread(target=engine.update_weights, args=(versions[i % 3][1],)) for i in range(6)]
    before = engine.weights_version
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.weights_version == before + 6
    assert engine.weights_checksum() in [sums for *_, sums in versions]


@pytest.mark.anyio
def test_beside_an_event_loop(engine, versions):
    async def run():
        await engine.async_update_weights(versions[1][1], version="beside")
        return await engine.async_generate(input_ids=PROMPTS[0], sampling_params=PARAMS)

    output = asyncio.run(run())
    assert (output.token_ids, output.weights_version) == (versions[1][2][0], "beside")
