"""Hidden states: those of transformers, complete and once, however the engine came by them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from fake_runner import Recorder, make_core, make_submission, run_to_end
from transformers import LlamaConfig, LlamaForCausalLM

import rootlet
from rootlet.engine.steps.batch_layout import lay_out
from rootlet.engine.steps.hidden_states import CollectedStates
from rootlet.engine.steps.layout import Piece
from rootlet.errors import InvalidRequestError

GREEDY = {"temperature": 0, "max_new_tokens": 7, "ignore_eos": True}
PROMPTS = [list(range(5, 5 + n)) for n in (1, 2, 9, 30)] + [[7, 7, 7, 80, 3]]


@pytest.fixture(scope="module")
def hf():
    """A tiny Llama with weights large enough to tell mistakes apart."""
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
        torch_dtype="float32",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = 0.2 * torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + noise if "norm" in name else noise)
    return model


@pytest.fixture(scope="module")
def folder(hf, tmp_path_factory):
    path = tmp_path_factory.mktemp("hidden")
    hf.save_pretrained(path)
    return str(path)


def build(folder, **options):
    options = {"dtype": "float32", "skip_tokenizer_init": True, "max_total_tokens": 512} | options
    return rootlet.Engine(folder, **options)


@pytest.fixture(scope="module")
def engine(folder):
    with build(folder) as engine:
        yield engine


@pytest.fixture(scope="module")
def check(hf):
    """Compares an output's states with transformers' for the same tokens."""

    def compare(output, prompt):
        states = output.hidden_states
        assert states is output["meta_info"]["hidden_states"]
        assert len(states) == output.completion_tokens >= 1
        assert states[0].shape == (len(prompt), 32)
        assert all(state.shape == (32,) for state in states[1:])
        assert all(state.device.type == "cpu" and state.dtype == torch.float32 for state in states)
        with torch.inference_mode():
            expected = hf.model(torch.tensor([[*prompt, *output.token_ids]])).last_hidden_state[0, :-1]
        torch.testing.assert_close(torch.cat([states[0], *(s[None] for s in states[1:])]), expected, **CLOSE)

    return compare


CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"disable_overlap_schedule": False, "page_size": 1},
        {"chunked_prefill_size": 4},
        {"chunked_prefill_size": 1, "disable_overlap_schedule": False},
        {"chunked_prefill_size": -1, "disable_radix_cache": True},
    ],
    ids=str,
)
def test_states_are_those_of_transformers(folder, check, options):
    with build(folder, **options) as engine:
        plain = engine.generate(input_ids=PROMPTS, sampling_params=GREEDY)
        for _ in range(2):  # the second time the prompts are in the tree
            wanted = [True, False, True, True, True]
            outputs = engine.generate(input_ids=PROMPTS, sampling_params=GREEDY, return_hidden_states=wanted)
            assert [o.token_ids for o in outputs] == [o.token_ids for o in plain]
            assert outputs[1].hidden_states is None
            assert "hidden_states" not in outputs[1]["meta_info"]
            for i in (0, 2, 3, 4):
                check(outputs[i], PROMPTS[i])


@pytest.mark.parametrize("overlap", [False, True])
def test_preemption_collects_no_state_twice(folder, check, overlap):
    options = {"max_total_tokens": 48, "page_size": 4, "chunked_prefill_size": 8}
    prompts = [[i + 3] * 12 for i in range(5)]
    with build(folder, **options, disable_overlap_schedule=not overlap) as engine:
        params = GREEDY | {"max_new_tokens": 30}
        outputs = engine.generate(input_ids=prompts, sampling_params=params, return_hidden_states=True)
        assert engine.stats().num_preemptions > 0
    for output, prompt in zip(outputs, prompts):
        check(output, prompt)


@pytest.mark.parametrize("overlap", [False, True])
def test_the_positions_that_are_computed_cover_those_that_are_wanted(overlap):
    """Tiny pool, shared prompts: states stand for their positions, every one is delivered once, in order."""
    core, runner = make_core(num_pages=24, page_size=4, chunk=8, overlap=overlap)
    inner = runner.launch

    def launch(batch):
        step = inner(batch)
        pieces = lay_out(batch).pieces
        positions = torch.tensor([[p] for row in batch.rows for p in range(row.start, row.end)])
        states = [(piece.row, positions[piece.begin : piece.end]) for piece in pieces]
        step._result = dataclasses.replace(step._result, hidden_states=states)
        return step

    runner.launch = launch
    prompt = [i % 97 for i in range(21)]
    submissions = [make_submission(str(i), [*prompt, i // 2], 1 + 6 * i) for i in range(8)]
    recorders = [Recorder() for _ in submissions]
    for i, submission in enumerate(submissions):
        submission.request.return_hidden_states = i % 2 == 0
        core.add(submission, recorders[i])
    run_to_end(core)
    assert core.scheduler.stats.num_preemptions > 0
    for i, recorder in enumerate(recorders):
        states = recorder.outputs[-1].hidden_states
        if i % 2:
            assert states is None
        else:
            assert states[0].flatten().tolist() == list(range(22))
            assert [state.item() for state in states[1:]] == list(range(22, 22 + 6 * i))


@pytest.mark.parametrize("overlap", [False, True])
def test_an_abort_returns_what_there_was(folder, hf, overlap):
    options = {"step_by_hand": True, "chunked_prefill_size": 8, "disable_overlap_schedule": not overlap}
    prompt = list(range(5, 25))
    with build(folder, **options) as engine, torch.inference_mode():
        expected = hf.model(torch.tensor([prompt])).last_hidden_state[0]
        for steps in range(8):
            engine.flush_cache()
            handle = engine.submit(input_ids=prompt, sampling_params=GREEDY, return_hidden_states=True)
            for _ in range(steps):
                engine.step()
            handle.abort()
            output = handle.result()
            while engine.step():  # the step that was in flight belongs to nobody now
                pass
            states = output.hidden_states
            assert output.finish_reason["type"] == "abort"
            committed = max(steps - overlap, 0)
            assert len(states) == max(output.completion_tokens, committed > 0)
            if states:
                computed = min(8 * committed, 20)
                torch.testing.assert_close(states[0], expected[:computed], **CLOSE)


def test_samples_and_sampled_tokens(engine, check):
    prompt = list(range(5, 45))
    params = {"n": 3, "temperature": 1.0, "seed": 5, "max_new_tokens": 6, "ignore_eos": True}
    outputs = engine.generate(input_ids=prompt, sampling_params=params, return_hidden_states=True)
    assert len({o.token_ids for o in outputs}) > 1
    for output in outputs:
        check(output, prompt)


@pytest.mark.parametrize("count", [0, 1])
def test_one_token_needs_the_prompt_only(engine, check, count):
    params = GREEDY | {"max_new_tokens": count}
    output = engine.generate(input_ids=[4, 5, 6], sampling_params=params, return_hidden_states=True)
    assert len(output.hidden_states) == 1
    check(output, [4, 5, 6])


def test_log_probabilities_beside(engine, check):
    prompt = list(range(30, 50))
    for start in (0, 12):
        output = engine.generate(
            input_ids=prompt, sampling_params=GREEDY, return_logprob=True, logprob_start_len=start,
            return_hidden_states=True,
        )  # fmt: skip
        assert len(output.output_token_logprobs) == 7
        check(output, prompt)


def test_only_the_final_chunk_of_a_stream_has_them(engine, check):
    chunks = list(
        engine.generate(input_ids=[4, 5], sampling_params=GREEDY, stream=True, return_hidden_states=True)
    )
    assert all(chunk.hidden_states is None for chunk in chunks[:-1])
    check(chunks[-1], [4, 5])


def test_the_engine_option_is_the_default(folder, check):
    with build(folder, return_hidden_states=True) as engine:
        check(engine.generate(input_ids=[4, 5], sampling_params=GREEDY), [4, 5])
        without = engine.generate(input_ids=[4, 5], sampling_params=GREEDY, return_hidden_states=False)
        assert without.hidden_states is None
        json.dumps(without.as_dict())


def test_tensors_are_ordinary_and_keep_no_batch_mates_alive(engine):
    outputs = engine.generate(input_ids=PROMPTS, sampling_params=GREEDY, return_hidden_states=True)
    for output, prompt in zip(outputs, PROMPTS):
        states = output.hidden_states
        assert not any(state.is_inference() for state in states)
        assert states[0].untyped_storage().nbytes() == (len(prompt) + 6) * 32 * 4
    assert outputs[0] == outputs[0]
    assert "tensor" not in repr(outputs[0])


def test_pieces_travel_together_and_part_on_the_host():
    hidden = torch.arange(20.0).view(10, 2)
    spans = [(1, 3), (3, 4), (6, 10)]
    pieces = [Piece(row, *span) for row, span in zip((0, 1, 4), spans)]
    collected = CollectedStates.begin(pieces, hidden)
    assert collected.runs == ((1, 4), (6, 10))
    for (owner, states), row, (begin, end) in zip(collected.wait(), (0, 1, 4), spans, strict=True):
        assert owner == row
        assert torch.equal(states, hidden[begin:end])
        assert states.untyped_storage().nbytes() == states.nbytes


def test_bfloat16_states_keep_their_type(folder):
    with build(folder, dtype="bfloat16") as engine:
        output = engine.generate(input_ids=[4, 5], sampling_params=GREEDY, return_hidden_states=True)
    assert {state.dtype for state in output.hidden_states} == {torch.bfloat16}


def test_anything_but_a_bool_is_refused(engine):
    with pytest.raises(InvalidRequestError, match="return_hidden_states must be a bool"):
        engine.generate(input_ids=[4], sampling_params=GREEDY, return_hidden_states="yes")
