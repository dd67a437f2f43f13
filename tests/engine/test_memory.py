"""Memory that an engine gives to others for a while: what is refused meanwhile, and what is as before."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from fake_driver import FakeDriver
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from replayed_graphs import use_gpu_steps

import rootlet
from rootlet.engine.build import parts
from rootlet.engine.build.released import Places
from rootlet.engine.memory import TAGS, EngineMemory
from rootlet.errors import (
    ConfigError,
    DeviceMemoryError,
    EngineClosedError,
    InvalidParameterError,
    InvalidRequestError,
    WeightsError,
)
from rootlet.kernels.arena import Arena
from rootlet.kernels.host_pages import GIVES_PAGES_BACK
from rootlet.kernels.matrices import packing

from ..models.hf import build_hf

pytestmark = pytest.mark.skipif(not GIVES_PAGES_BACK, reason="a CPU gives memory back on Linux only")

PROMPTS = [[5, 6, 7, 8, 9], [*range(20, 60)], [7]]
PARAMS = {"temperature": 0, "max_new_tokens": 10, "ignore_eos": True}
LARGE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "vocab_size": 20_000}
MIB = 2**20


def build(folder, **options):
    options = {"max_total_tokens": 4096, "dtype": "float32", "device": "cpu"} | options
    return rootlet.Engine(folder, load_format="dummy", skip_tokenizer_init=True, **options)


def answers(engine):
    """Of prompts one by one, so that every step is the same each time; nothing is cached before."""
    engine.flush_cache()
    outputs = [
        engine.generate(input_ids=prompt, sampling_params=PARAMS, return_logprob=True, logprob_start_len=0)
        for prompt in PROMPTS
    ]
    return [(out.token_ids, out.input_token_logprobs, out.output_token_logprobs) for out in outputs]


def weights_of(engine):
    """Copies by name, as a trainer has them."""
    model = engine._loop._core.runner.model
    return {name: model.get_weight(name).clone() for name in model.weight_shapes}


def addresses(engine):
    runner = engine._loop._core.runner
    tensors = [*runner.model.weight_tensors(), *runner.kv.data, runner.tables.tokens, runner.tables.pages]
    return [tensor.data_ptr() for tensor in tensors]


@pytest.fixture
def driver():
    return FakeDriver(granule=65536)


@pytest.fixture(params=["float32", "bfloat16", "deterministic", "arena"])
def engine(request, tiny_model, driver, monkeypatch):
    """Rows as they are, panels, and memory of a driver, which loses what it is given."""
    if request.param == "arena":
        places = Places(Arena(driver), Arena(driver, zeroed=True))
        monkeypatch.setattr(parts, "make_places", lambda config, device: places)
    options = {"float32": {}, "arena": {}, "deterministic": {"deterministic": True}}
    with build(tiny_model, **options.get(request.param, {"dtype": request.param})) as engine:
        yield engine


def test_weights_that_are_kept_answer_as_before(engine):
    expected, places = answers(engine), addresses(engine)
    for tags in (None, ["weights"], ["kv_cache"], "cuda_graph"):
        engine.release_memory(tags, weights="host")
        engine.resume_memory(tags)
        assert answers(engine) == expected
    assert addresses(engine) == places


def test_weights_that_are_gone_have_to_be_pushed(engine):
    expected, places, weights = answers(engine), addresses(engine), weights_of(engine)
    for _ in range(2):
        assert engine.release_memory().freed > 0
        check_refused(engine, WeightsError, "discarded .* push weights")
        engine.resume_memory(["weights"])
        check_refused(engine, WeightsError, r"resume_memory\(\['kv_cache'\]\) first, then push weights")
        engine.update_weights(weights)
        check_refused(engine, InvalidRequestError, r"kv_cache is released: call resume_memory")
        engine.resume_memory()
        assert answers(engine) == expected
    assert addresses(engine) == places


def check_refused(engine, error, match):
    """Whichever way a request comes."""
    calls = [
        lambda: engine.generate(input_ids=[5, 6]),
        lambda: engine.generate(input_ids=[[5, 6], [7]], stream=True),
        lambda: engine.submit(input_ids=[5, 6]),
        lambda: engine.score([5, 6], [[7], [8]]),
        lambda: asyncio.run(engine.async_generate(input_ids=[5, 6])),
    ]
    for call in calls:
        with pytest.raises(error, match=match):
            call()


def test_a_push_that_fails_brings_nothing_back(engine):
    weights = weights_of(engine)
    expected = answers(engine)
    engine.release_memory()
    engine.resume_memory()
    with pytest.raises(WeightsError, match="missing"):
        engine.update_weights(dict([*weights.items()][:-1]))
    check_refused(engine, WeightsError, "push weights first")
    engine.update_weights(weights)
    assert answers(engine) == expected


def test_an_update_takes_the_memory_it_needs(engine):
    """Of the weights alone; tensors that come one by one wait on the host while the pool is away."""
    expected, weights = answers(engine), weights_of(engine)
    for source in (weights, iter(weights.items())):
        engine.release_memory()
        engine.update_weights(source)
        assert engine._memory.released == {"kv_cache", "cuda_graph"}
        assert engine._memory._parts["kv_cache"].held() == 0
        check_refused(engine, InvalidRequestError, "kv_cache is released")
        engine.resume_memory()
        assert answers(engine) == expected


def test_weights_come_back_piece_by_piece(engine):
    """The documented form is one of some weights; when all of them came, requests are let in."""
    expected, weights = answers(engine), [*weights_of(engine).items()]
    engine.release_memory_occupation()
    engine.resume_memory_occupation()
    first, last = weights[0][0], weights[-1][0]
    assert engine.update_weights_from_tensor(weights[:-1]) == (True, "Success")
    check_refused(engine, WeightsError, rf"push weights first\. Missing \(1\): {last}")
    engine.update_weights(dict(weights[:1]), partial=True)
    check_refused(engine, WeightsError, "push weights first")
    engine.update_weights(dict(weights[-1:]), partial=True)
    assert answers(engine) == expected
    engine.release_memory("weights")
    engine.update_weights(dict(weights[1:]), partial=True)
    check_refused(engine, WeightsError, rf"Missing \(1\): {first}")


def test_weights_that_are_not_there_cannot_be_read(engine):
    name = "model.norm.weight"
    before = engine.weight(name)
    engine.release_memory("weights", weights="host")
    for read in (engine.weight, engine.get_weights_by_name, lambda name: engine.weights_checksum([name])):
        with pytest.raises(InvalidRequestError, match="weights is released: call resume_memory"):
            read(name)
    engine.resume_memory()
    assert engine.weight(name).equal(before)
    engine.release_memory("weights")
    engine.resume_memory()
    with pytest.raises(WeightsError, match="push weights first"):
        engine.weight(name)


def test_a_pool_in_which_an_update_waits_stays(engine):
    expected, weights = answers(engine), weights_of(engine)
    with engine.weight_update() as update:
        update.add("model.norm.weight", weights["model.norm.weight"])
        with pytest.raises(InvalidRequestError, match="update of weights is under way"):
            engine.release_memory()
        for name, tensor in weights.items():
            if name != "model.norm.weight":
                update.add(name, tensor)
    engine.release_memory(weights="host")
    engine.resume_memory()
    assert answers(engine) == expected


def test_weights_that_a_trainer_lies_in_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "is_multiplied_in_c", lambda dtype: False)  # rows as they are
    model = build_hf("Llama", max_position_embeddings=128)
    model.save_pretrained(tmp_path)
    options = {"dtype": "float32", "device": "cpu", "skip_tokenizer_init": True, "max_total_tokens": 512}
    with rootlet.Engine(str(tmp_path), **options) as engine:
        engine.share_weights(model)
        expected = answers(engine)
        for tags in (None, ["weights"]):
            with pytest.raises(InvalidRequestError, match="A module shares the weights"):
                engine.release_memory(tags)
        engine.release_memory(["kv_cache", "cuda_graph"])
        engine.resume_memory()
        assert answers(engine) == expected
        engine.unshare_weights()
        engine.release_memory()
        engine.share_weights(model)  # which takes the memory and brings the values
        engine.resume_memory()
        assert answers(engine) == expected


def test_a_paused_engine_stays_paused(engine):
    expected = answers(engine)
    engine.pause()
    engine.release_memory(weights="host")
    engine.resume_memory()
    handle = engine.submit(input_ids=PROMPTS[0], sampling_params=PARAMS)
    with pytest.raises(InvalidRequestError, match="1 run or wait"):
        engine.release_memory()
    engine.resume()
    assert handle.result(30).token_ids == expected[0][0]


def test_both_are_idempotent(engine):
    assert engine.resume_memory().freed == 0
    first = engine.release_memory(weights="host")
    assert first.freed == sum(first.by_tag.values())
    again = engine.release_memory(weights="discard")  # released already: the copy stays
    assert (again.freed, again.by_tag, again.held) == (0, dict.fromkeys(TAGS, 0), first.held)
    engine.resume_memory()
    assert engine.resume_memory().freed == 0
    engine.generate(input_ids=[5], sampling_params=PARAMS)


def test_resuming_does_not_bring_values_back(engine):
    engine.release_memory("weights")
    for weights in ("host", "discard"):
        engine.resume_memory()
        engine.release_memory(weights=weights)
    engine.resume_memory()
    check_refused(engine, WeightsError, "push weights first")


def test_the_prefix_cache_is_emptied_with_the_pool(engine):
    def cached():
        return engine.generate(input_ids=PROMPTS[1], sampling_params=PARAMS).cached_tokens

    cached()
    assert cached() == len(PROMPTS[1]) - 1
    engine.release_memory("weights", weights="host")
    engine.resume_memory()
    assert cached() == len(PROMPTS[1]) - 1
    engine.release_memory("kv_cache")
    engine.resume_memory()
    assert engine.stats().pages_cached == 0
    assert cached() == 0


def test_requests_are_not_left_without_memory(tiny_model):
    with build(tiny_model, step_by_hand=True) as engine:
        asked = {"input_ids": [5, 6], "sampling_params": PARAMS}
        handles = [engine.submit(rid=f"request {i}", **asked) for i in range(9)]
        engine.step()
        with pytest.raises(InvalidRequestError, match=r"9 run or wait: 'request 0', .* and 1 more"):
            engine.release_memory()
        with pytest.raises(InvalidRequestError, match="'request 0'"):
            engine.release_memory("cuda_graph")
        assert all(len(handle.result().token_ids) == 10 for handle in handles)
        engine.release_memory(weights="host")
        engine.resume_memory()
        assert len(engine.generate(input_ids=[5, 6], sampling_params=PARAMS).token_ids) == 10


@pytest.mark.parametrize("overlap", [False, True])
def test_right_after_a_request_nothing_is_in_the_way(tiny_model, overlap):
    """A step that was launched before its only request ended is nobody's."""
    with build(tiny_model, disable_overlap_schedule=not overlap) as engine:
        stop = engine.generate(input_ids=[5, 6], sampling_params=PARAMS).token_ids[4]
        for _ in range(20):
            engine.generate(input_ids=[5, 6], sampling_params={**PARAMS, "stop_token_ids": [stop]})
            engine.release_memory("kv_cache")
            engine.resume_memory()


def test_what_is_asked_wrongly_is_refused_and_changes_nothing(engine):
    for tags in ("kv", ["weights", "graphs"], [3], 3):
        for call in (engine.release_memory, engine.resume_memory):
            with pytest.raises(InvalidParameterError, match="tags must be of 'weights', 'kv_cache', 'cuda_g"):
                call(tags)
    with pytest.raises(InvalidParameterError, match="weights must be 'discard' or 'host', got 'disk'"):
        engine.release_memory(weights="disk")
    assert engine._memory.released == set()
    assert engine._memory.has_weights


def test_the_documented_names(engine):
    assert engine.release_memory_occupation() is None
    check_refused(engine, WeightsError, "push weights")
    assert engine.resume_memory_occupation(tags=["weights", "kv_cache"]) is None
    assert engine._memory.released == {"cuda_graph"}
    assert engine.resume_memory_occupation() is None
    assert not engine._memory.has_weights


def test_on_an_event_loop(engine):
    async def main():
        before = await engine.async_generate(input_ids=PROMPTS[1], sampling_params=PARAMS)
        await engine.async_release_memory(weights="host")
        await engine.async_resume_memory()
        after = await engine.async_generate(input_ids=PROMPTS[1], sampling_params=PARAMS)
        assert after.token_ids == before.token_ids

    asyncio.run(main())


def test_an_engine_ends_also_while_its_memory_is_away(tiny_model, driver, monkeypatch):
    for tags in ([], ["weights"], ["kv_cache"], None):
        places = Places(Arena(driver), Arena(driver, zeroed=True))
        monkeypatch.setattr(parts, "make_places", lambda config, device, places=places: places)
        engine = build(tiny_model)
        engine.generate(input_ids=[5, 6], sampling_params=PARAMS)
        engine.release_memory(tags)
        engine.close()
        assert (driver.reserved, driver.mapped) == ({}, {})
        for call in (engine.release_memory, engine.resume_memory):
            with pytest.raises(EngineClosedError):
                call()


def test_memory_that_somebody_else_took_can_be_asked_for_again(tiny_model, driver, monkeypatch):
    places = Places(Arena(driver), Arena(driver, zeroed=True))
    monkeypatch.setattr(parts, "make_places", lambda config, device: places)
    with build(tiny_model) as engine:
        expected, room = answers(engine), driver.room
        engine.release_memory(weights="host")
        driver.room = 8 * driver.granularity  # enough for the weights
        with pytest.raises(DeviceMemoryError, match=r"OUT_OF_MEMORY .* Have others free memory"):
            engine.resume_memory()
        assert engine._memory.released == {"kv_cache", "cuda_graph"}
        check_refused(engine, InvalidRequestError, r"kv_cache is released: call resume_memory\(\['kv_c")
        driver.room = room
        engine.resume_memory()
        assert answers(engine) == expected


def test_two_engines_do_not_meet(tiny_model):
    with build(tiny_model) as one, build(tiny_model, dtype="bfloat16") as two:
        expected = answers(two)
        one.release_memory()
        assert answers(two) == expected
        two.release_memory(weights="host")
        two.resume_memory()
        assert answers(two) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_process_shrinks_by_what_is_reported(tiny_model, dtype):
    override = json.dumps(LARGE)
    with build(tiny_model, json_model_override_args=override, dtype=dtype, max_total_tokens=8192) as engine:
        many = [[(7 * i + j) % 20_000 for j in range(400)] for i in range(16)]
        engine.generate(input_ids=many, sampling_params={"max_new_tokens": 1})
        weights = sum(tensor.nbytes for tensor in engine._loop._core.runner.model.weight_tensors())
        kv = 16 * 400 * engine._loop._core.runner.kv.spec.bytes_per_token
        before = resident()
        report = engine.release_memory()
        fallen = before - resident()
        assert report.by_tag["weights"] == pytest.approx(weights, rel=0.01)
        assert report.by_tag["kv_cache"] >= 0.98 * kv
        assert fallen == pytest.approx(report.freed, rel=0.05, abs=2 * MIB)
        assert report.held["kv_cache"] == report.held["weights"] == 0


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


# ---- recorded steps


def test_recorded_steps_are_forgotten_and_recorded_anew(tiny_model, monkeypatch):
    made = use_gpu_steps(monkeypatch)
    with build(tiny_model, max_total_tokens=512, max_running_requests=4) as engine:

        def recorded():
            before = len(made[0].replays)
            tokens = engine.generate(input_ids=[5, 6], sampling_params=PARAMS).token_ids
            return tokens, [is_recorded for *_, is_recorded in made[0].replays[before:]]

        expected, first = recorded()
        assert any(first)
        for _ in range(2):
            engine.release_memory(["cuda_graph"])
            assert not made[0]._decodes._steps
            assert recorded() == (expected, [])
            assert not made[0]._decodes._steps
            engine.resume_memory()
            assert recorded() == (expected, first)
        engine.release_memory(["weights", "kv_cache"], weights="host")
        assert made[0]._decodes._steps  # they stay, and find all where it was
        engine.resume_memory()
        assert recorded() == (expected, first)


def test_nothing_is_recorded_ahead_while_memory_is_away(tiny_model, monkeypatch):
    made = use_gpu_steps(monkeypatch)
    with build(tiny_model, max_total_tokens=512, max_running_requests=1) as engine:
        monkeypatch.setattr("rootlet.engine.steps.graphs.steps._AHEAD", ((1, 1),))
        [*engine.generate(input_ids=[5, 6], sampling_params=PARAMS, stream=True)]
        assert made[0].is_ready.wait(60)
        made[0].is_ready.clear()
        engine.release_memory(weights="host")
        engine.resume_memory("cuda_graph")
        assert not made[0].is_ready.wait(0.3)
        engine.resume_memory()
        assert made[0].is_ready.wait(60)
        assert made[0]._decodes._steps


# ---- refusals


def test_without_the_option_a_gpu_says_what_is_missing():
    memory = EngineMemory({}, impossible="needs enable_memory_saver=True")
    with pytest.raises(ConfigError, match="enable_memory_saver=True"):
        memory.release(Core())
    assert memory.resume(Core()).freed == 0  # nothing was released


def test_the_option_does_not_go_with_offloading(tiny_model):
    with pytest.raises(ConfigError, match=r"enable_memory_saver=True does not go with cpu_offload_gb=1"):
        build(tiny_model, enable_memory_saver=True, cpu_offload_gb=1)
    build(tiny_model, enable_memory_saver=True).close()  # on a CPU it changes nothing


# ---- all states

NAMES = ["a", "b", "c"]


class Core:
    """Counts as the real one does; nothing may be computed while it stands still."""

    def __init__(self):
        self.num_stops = 0
        self.rids = []
        self.num_flushes = 0
        self.scheduler = self.cache = self

    def stop(self, on_running, when_quiet=None):
        assert on_running == "keep"
        self.num_stops += 1

    def go_on(self):
        self.num_stops -= 1
        assert self.num_stops >= 0

    def flush(self):
        self.num_flushes += 1

    def get_ready_again(self):
        pass


class Part:
    """Ten bytes that are there or not; ``value`` is lost with them."""

    def __init__(self):
        self.there = True
        self.value: str | None = "old"
        self.copy: str | None = None
        self.came: set[str] = set()  # of what was lost
        self.fails = False

    def held(self):
        return 10 * self.there

    def release(self, *, keep=False):
        self._fail()
        assert self.there
        if keep:
            self.copy = self.value
        self.there, self.value, self.came = False, None, set()
        return 10

    def resume(self):
        self._fail()
        if self.there:
            return 0
        self.there, self.value, self.copy = True, self.copy, None
        return 10

    def close(self):
        self.there = False

    def _fail(self):
        failing, self.fails = self.fails, False
        if failing:
            raise DeviceMemoryError("no")


class MemoryMachine(RuleBasedStateMachine):
    """Whatever the order of calls and errors, requests are let in where their memory and values are right."""

    def __init__(self):
        super().__init__()
        self.core = Core()
        self.parts = {tag: Part() for tag in TAGS}
        self.memory = EngineMemory(self.parts, lambda: NAMES)

    tags = st.none() | st.lists(st.sampled_from(TAGS), max_size=3)

    @rule(tags=tags, weights=st.sampled_from(["discard", "host"]))
    def release(self, tags, weights):
        before = self.held()
        try:
            report = self.memory.release(self.core, tags, weights)
        except DeviceMemoryError:
            return
        assert report.freed == sum(report.by_tag.values()) == before - self.held()
        assert self.memory.released >= set(TAGS if tags is None else tags)
        assert report.held == {tag: part.held() for tag, part in self.parts.items()}

    @rule(tags=tags)
    def resume(self, tags):
        before = self.held()
        try:
            report = self.memory.resume(self.core, tags)
        except DeviceMemoryError:
            return
        assert report.freed == before - self.held()
        assert not self.memory.released & set(TAGS if tags is None else tags)

    @rule(names=st.none() | st.sets(st.sampled_from(NAMES), min_size=1))
    def push(self, names):
        part = self.parts["weights"]
        if "weights" in self.memory.released:
            with pytest.raises(AssertionError, match="resume"):
                self.memory.weights_came(self.core, names)
            return
        part.came |= set(NAMES if names is None else names)
        if part.came == set(NAMES):
            part.value = "new"
        self.memory.weights_came(self.core, names)

    @rule(tag=st.sampled_from(TAGS))
    def borrow(self, tag):
        if self.memory.borrow(tag, f"{tag} is in use"):
            assert self.parts[tag].there
            with pytest.raises(InvalidRequestError, match=f"{tag} is in use"):
                self.memory.release(self.core, [tag])
            self.memory.give_back(tag, f"{tag} is in use")

    @rule(tag=st.sampled_from(TAGS))
    def fail_next(self, tag):
        self.parts[tag].fails = True

    @rule()
    def ask_while_busy(self):
        self.core.rids = ["a"]
        if self.memory.released != set(TAGS):
            with pytest.raises(InvalidRequestError, match="'a'"):
                self.memory.release(self.core)
        self.core.rids = []

    def held(self):
        return sum(part.held() for part in self.parts.values())

    @invariant()
    def requests_are_let_in_only_where_all_is_right(self):
        refused = self.memory.refusal()
        if refused is None:
            assert self.parts["weights"].there
            assert self.parts["weights"].value is not None
            assert self.parts["kv_cache"].there
        assert self.core.num_stops == (refused is not None)
        assert self.memory.has_weights <= (self.parts["weights"].value is not None)
        if self.parts["weights"].there and self.parts["weights"].value is None:
            assert isinstance(refused, WeightsError)


TestMemoryStates = MemoryMachine.TestCase
TestMemoryStates.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)


def test_a_refusal_on_the_engines_thread_reaches_the_caller(tiny_model):
    """The check before posting is not the last word: memory may go in between."""
    with build(tiny_model) as engine:
        held = threading.Event()
        engine._loop.post(lambda core: held.wait(10), lambda error: None)
        outcome = []
        releasing = threading.Thread(target=lambda: outcome.append(engine.release_memory()))
        releasing.start()
        while not engine._loop._commands:
            pass
        handle = engine.submit(input_ids=[5, 6], sampling_params=PARAMS)
        held.set()
        releasing.join()
        with pytest.raises(WeightsError, match="push weights"):
            handle.result(10)
        assert outcome[0].freed > 0
