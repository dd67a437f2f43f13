"""Constrained requests in an engine: every output meets its constraint, and nobody else's."""

from __future__ import annotations

import json
import re
import threading

import pydantic
import pytest
from tiny_llama import SMOLLM2_VOCAB_SIZE, write_tiny_llama
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

import rootlet
from rootlet.engine.requests.constraints import constraint_of
from rootlet.errors import EngineClosedError, GrammarError, InvalidRequestError, NumericalError
from rootlet.sampling.params import SamplingParams

from .constrained import FORM, check_corpus, check_rows_apart

PROMPT = [300 + (977 * i) % 40_000 for i in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The very small Llama with the vocabulary of SmolLM2."""
    return write_tiny_llama(tmp_path_factory.mktemp("constraints"), SMOLLM2_VOCAB_SIZE)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """The very small Llama with a vocabulary like Llama 2's: words begin with a space mark, as texts do."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>", *letters], show_progress=False
    )
    backend.train_from_iterator([json.dumps(FORM), "the quick brown fox jumps over it"] * 9, trainer)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    written = json.loads(backend.to_str())  # bytes are tokens like any other
    written["added_tokens"] = [token for token in written["added_tokens"] if token["id"] < 3]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(written)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.save_pretrained(folder)
    return write_tiny_llama(folder, len(tokenizer))


@pytest.fixture
def build(folder, smollm2_gguf):
    engines = []

    def build(**options) -> rootlet.Engine:
        options = {
            "max_total_tokens": 4096,
            "dtype": "float32",
            "tokenizer_path": str(smollm2_gguf),
        } | options
        engines.append(rootlet.Engine(folder, load_format="dummy", device="cpu", **options))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


class Gate:
    """A backend that compiles when it is let."""

    def __init__(self, engine: rootlet.Engine) -> None:
        compiler = engine._constraints._compiler
        self._backend, compiler._backend = compiler._backend, self
        self.entered, self.opened = threading.Event(), threading.Event()

    def compile(self, constraint, budget):
        self.entered.set()
        assert self.opened.wait(60)
        return self._backend.compile(constraint, budget)


# ---- outputs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(smollm2_gguf):
    """The real small model, with overlap, which is the harder way."""
    with rootlet.Engine(
        str(smollm2_gguf), device="cpu", max_total_tokens=65_536, disable_overlap_schedule=False
    ) as engine:
        yield engine


def test_every_complete_output_of_a_real_model_is_valid(real):
    check_corpus(real)


def test_masks_never_leak_between_rows(real):
    check_rows_apart(real)


@pytest.mark.parametrize("backend", ["xgrammar", "llguidance"])
@pytest.mark.parametrize("overlap", [True, False])
def test_jump_forward_saves_steps_and_changes_no_token(build, backend, overlap):
    answers, steps = [], []
    for jump in (True, False):
        engine = build(
            grammar_backend=backend, disable_overlap_schedule=not overlap, disable_jump_forward=not jump
        )
        before = engine.stats()
        outputs = [
            engine.generate(
                input_ids=PROMPT[i:],
                sampling_params={"temperature": i % 2, "seed": i, "max_new_tokens": 90, "json_schema": FORM},
                return_logprob=True,
            )
            for i in range(4)
        ]
        after = engine.stats()
        steps.append(after.num_steps - before.num_steps)
        answers.append([(output.token_ids, output.text, output.finish_reason) for output in outputs])
        for output in outputs:
            assert len(output.output_token_logprobs) == len(output.token_ids)
            assert [token for _, token, *_ in output.output_token_logprobs] == list(output.token_ids)
            if output.finish_reason["type"] == "stop":
                assert set(json.loads(output.text)) == set(FORM["required"])
    assert answers[0] == answers[1]
    # a model of random weights cuts words in odd ways, where drafts are wrong more often than right
    assert steps[0] < steps[1]


@pytest.mark.parametrize("backend", ["xgrammar", "llguidance"])
def test_tokenizers_that_put_a_space_in_front(sentencepiece, backend):
    """A forced text is cut without that space, and outputs begin with one only where they may."""
    constraints = [
        {"regex": "[ab]: the quick brown fox jumps"},
        {"regex": "it the quick[ab]"},
        {"choice": ["the", " the", "\nthe", "ça"]},
        {"json_schema": FORM},
    ]
    answers, steps = [], []
    for jump in (True, False):
        options = {"grammar_backend": backend, "disable_jump_forward": not jump, "dtype": "float32"}
        with rootlet.Engine(
            sentencepiece, load_format="dummy", device="cpu", max_total_tokens=4096, **options
        ) as engine:
            params = [
                {"temperature": i % 2, "seed": i, "max_new_tokens": 300, **constraints[i % 4]}
                for i in range(16)
            ]
            outputs = [engine.generate("the brown form", one) for one in params]  # many would draft nothing
            for output, given in zip(outputs, params):
                assert output.finish_reason["type"] == "stop"
                if "regex" in given:
                    assert re.fullmatch(given["regex"], output.text)
                elif "choice" in given:
                    assert output.text in given["choice"]
                else:
                    assert set(json.loads(output.text)) == set(FORM["required"])
            answers.append([output.token_ids for output in outputs])
            steps.append(engine.stats().num_steps)
    assert answers[0] == answers[1]
    assert steps[0] < steps[1]


def test_jump_forward_needs_far_fewer_passes_with_a_real_model(smollm2_gguf):
    """In an engine of its own: what others' forecasts came to counts for new requests."""
    params = {"temperature": 0, "max_new_tokens": 120, "json_schema": FORM}
    with rootlet.Engine(str(smollm2_gguf), device="cpu", max_total_tokens=1024) as engine:
        output = engine.generate("Fill in the form as JSON for customer 12: ", params)
        passes = engine.stats().num_steps
    assert output.finish_reason["type"] == "stop"
    assert passes * 1.5 <= len(output.token_ids)


def test_stop_strings_within_forced_text_cut_it(build):
    engine = build()
    output = engine.generate(
        input_ids=PROMPT,
        sampling_params={
            "regex": "[ab]: the quick brown fox jumps over it",
            "stop": ["own"],
            "temperature": 0,
        },
        return_logprob=True,
    )
    assert output.text[1:] == ": the quick br"
    assert output.finish_reason == {"type": "stop", "matched": "own"}
    assert len(output.output_token_logprobs) == len(output.token_ids)
    assert engine.tokenizer.decode(output.token_ids)[1:].startswith(": the quick brown")


def test_samples_of_one_prompt_each_have_their_own_place(build):
    engine = build()
    params = {"regex": "[a-c]{3,9}x", "n": 6, "temperature": 1, "seed": 3}
    texts = [output.text for output in engine.generate(input_ids=PROMPT, sampling_params=params)]
    assert all(text.endswith("x") and set(text) <= set("abcx") for text in texts)
    assert len(set(texts)) > 1


def test_a_met_constraint_ends_the_request_whatever_else_it_says(build):
    engine = build()
    params = {"choice": ["yes", "no"], "ignore_eos": True, "max_new_tokens": 40}
    output = engine.generate(input_ids=PROMPT, sampling_params=params)
    assert output.text in ("yes", "no")
    assert output.finish_reason["type"] == "stop"


def test_pydantic_models_and_dicts_are_schemas(build):
    class Point(pydantic.BaseModel):
        x: int
        label: str | None = None

    engine = build()
    assert SamplingParams(json_schema=Point).json_schema == json.dumps(Point.model_json_schema())
    for schema in (Point, Point.model_json_schema(), json.dumps(Point.model_json_schema())):
        params = {"json_schema": schema, "max_new_tokens": 400, "temperature": 1, "seed": 1}
        output = engine.generate(input_ids=PROMPT, sampling_params=params)
        if output.finish_reason["type"] == "stop":
            Point.model_validate_json(output.text)
        assert output.text.startswith('{"x": ')


# ---- compiling ---------------------------------------------------------------------------------------


def test_others_run_while_a_grammar_is_compiled(build):
    engine = build()
    gate = Gate(engine)
    bound = engine.submit(input_ids=PROMPT, sampling_params={"regex": "a{3}"}, stream=False)
    free = engine.generate(input_ids=PROMPT, sampling_params={"max_new_tokens": 3, "ignore_eos": True})
    assert len(free.token_ids) == 3
    assert gate.entered.wait(60)
    stats = engine.stats()
    assert (stats.num_compiling, stats.num_waiting, stats.num_running) == (1, 0, 0)
    assert not engine.flush_cache()
    gate.opened.set()
    assert bound.result(60).text == "aaa"
    assert engine.stats().num_compiling == 0
    assert engine.flush_cache()


def test_an_engine_driven_by_hand_waits_for_grammars(build):
    engine = build(step_by_hand=True)
    handle = engine.submit(input_ids=PROMPT, sampling_params={"regex": "[0-9]{2}"}, stream=False)
    assert handle.result().text.isdigit()


def test_a_request_can_be_aborted_while_its_grammar_is_compiled(build):
    engine = build()
    gate = Gate(engine)
    handle = engine.submit(input_ids=PROMPT, sampling_params={"regex": "a{3}"}, stream=False)
    assert gate.entered.wait(60)
    handle.abort()
    assert handle.result(60).finish_reason["type"] == "abort"
    gate.opened.set()
    assert engine.generate(input_ids=PROMPT, sampling_params={"regex": "a{3}"}).text == "aaa"


ENDLESS = {  # a value that is judged 2**60 times
    "enum": [[1]],
    "items": {"$ref": "#/$defs/d0"},
    "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)} | {"d60": True},
}


def test_compiling_ends_with_the_last_request_that_waits_and_with_close(build):
    threads = set(threading.enumerate())
    engine = build(grammar_compile_budget=100_000)
    endless = [{"json_schema": ENDLESS | {"title": str(i)}} for i in range(4)]
    handles = [engine.submit(input_ids=PROMPT, sampling_params=one) for one in [*endless, endless[0]]]
    params = {"regex": "a{3}", "n": 2}
    assert {one.text for one in engine.generate(input_ids=PROMPT, sampling_params=params)} == {"aaa"}
    compiler = engine._constraints._compiler
    shared = compiler._cache[constraint_of(SamplingParams(**endless[0]))]
    for handle, others in ((handles[0], 4), (handles[4], 3)):
        handle.abort()
        assert handle.result(60).finish_reason["type"] == "abort"
        assert engine.stats().num_compiling == others
    assert isinstance(shared.exception(60), GrammarError)
    assert not any(handle.done() for handle in handles[1:4])
    engine.close()
    with pytest.raises(EngineClosedError):
        handles[1].result(60)
    assert set(threading.enumerate()) <= threads


def test_close_while_compiling_wakes_the_waiter_and_leaves_no_thread(build):
    threads = set(threading.enumerate())
    engine = build()
    gate = Gate(engine)
    handle = engine.submit(input_ids=PROMPT, sampling_params={"regex": "a{3}"}, stream=False)
    assert gate.entered.wait(60)
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(EngineClosedError):
        handle.result(60)
    gate.opened.set()
    closing.join(60)
    assert set(threading.enumerate()) <= threads


def test_grammars_are_compiled_once_and_forgotten_by_flush(build):
    engine = build()
    compiled = []
    compiler = engine._constraints._compiler
    compile_one = compiler._backend.compile
    compiler._backend.compile = lambda one, budget: compiled.append(one) or compile_one(one, budget)
    params = {"regex": "b{2}", "n": 3}
    for _ in range(2):
        assert {o.text for o in engine.generate(input_ids=PROMPT, sampling_params=params)} == {"bb"}
    assert len(compiled) == 1
    assert engine.flush_cache()
    engine.generate(input_ids=PROMPT, sampling_params=params)
    assert len(compiled) == 2


def test_a_refused_constraint_fails_its_request_alone(build):
    engine = build()
    wanted = [{"regex": "(?=a)b"}, {"regex": "ab"}, {"json_schema": {"not": {"uniqueItems": True}}}, {}]
    handles = [
        engine.submit(input_ids=PROMPT, sampling_params={"max_new_tokens": 4, **one}, stream=False)
        for one in wanted
    ]
    with pytest.raises(GrammarError, match="lookahead"):
        handles[0].result(60)
    assert handles[1].result(60).text == "ab"
    with pytest.raises(GrammarError, match="uniqueItems"):
        handles[2].result(60)
    assert handles[3].result(60).finish_reason["type"] in ("length", "stop")


def test_constraints_need_a_tokenizer(folder):
    engine = rootlet.Engine(folder, load_format="dummy", device="cpu", skip_tokenizer_init=True)
    with engine, pytest.raises(InvalidRequestError, match="choice needs a tokenizer"):
        engine.generate(input_ids=PROMPT, sampling_params={"choice": ["a"]})


def test_what_forbids_everything_the_constraint_allows_ends_the_request(build):
    engine = build()
    with pytest.raises(NumericalError):
        engine.generate(input_ids=PROMPT, sampling_params={"choice": ["a"], "min_new_tokens": 9})
