"""Text in and out of the engine, with the real model and tokenizer."""

from __future__ import annotations

import itertools

import pytest

import rootlet

GREEDY = {"temperature": 0, "max_new_tokens": 24}
PROMPTS = ["The capital of France is", "Water boils at a temperature of", "def fibonacci(n):\n"]


@pytest.fixture(scope="module")
def engine(smollm2_dir):
    with rootlet.Engine(str(smollm2_dir), dtype="float32", max_total_tokens=4000) as engine:
        yield engine


@pytest.fixture(scope="module")
def plain(engine):
    return engine.generate(PROMPTS, GREEDY)


def test_the_real_model_answers_sensibly(plain):
    assert "Paris" in plain[0].text


def test_text_is_the_decoded_tokens(engine, plain):
    for output in plain:
        ids = [t for t in output.token_ids if t not in engine.tokenizer.all_special_ids]
        assert output.text == engine.tokenizer.decode(ids)
        assert output["text"] == output.text


def test_streamed_text_grows_and_ends_like_the_plain_one(engine, plain):
    for prompt, output in zip(PROMPTS, plain):
        shown = ""
        for chunk in engine.generate(prompt, GREEDY, stream=True):
            assert chunk.text.startswith(shown)
            shown = chunk.text
        assert shown == output.text


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_stop_strings_across_token_borders(engine, plain, trim, stream):
    full = plain[0].text
    stop = full[6:11]  # begins and ends inside words
    params = GREEDY | {"stop": ["never in there", stop], "no_stop_trim": not trim}
    output = engine.generate(PROMPTS[0], params, stream=stream)
    if stream:
        chunks = list(output)
        output = chunks[-1]
        assert all(output.text.startswith(chunk.text) for chunk in chunks)
    assert output.finish_reason == {"type": "stop", "matched": stop}
    end = full.index(stop)
    assert output.text[: end + (0 if trim else len(stop))] == full[: end + (0 if trim else len(stop))]
    assert (stop in output.text) != trim
    assert output.completion_tokens < plain[0].completion_tokens


def test_stop_token_ids_and_ignore_eos(engine, plain):
    token = plain[0].token_ids[4]
    stopped = engine.generate(PROMPTS[0], GREEDY | {"stop_token_ids": [token]})
    assert stopped.finish_reason == {"type": "stop", "matched": token}
    assert stopped.token_ids == plain[0].token_ids[: plain[0].token_ids.index(token) + 1]
    assert stopped.text == engine.tokenizer.decode(stopped.token_ids[:-1])
    kept = engine.generate(PROMPTS[0], GREEDY | {"stop_token_ids": [token], "no_stop_trim": True})
    assert kept.text == engine.tokenizer.decode(stopped.token_ids)
    ignored = engine.generate(PROMPTS[0], GREEDY | {"stop_token_ids": [token], "ignore_eos": True})
    assert ignored.token_ids[: len(plain[0].token_ids)] == plain[0].token_ids


def test_length_beats_a_stop_string_that_completes_with_it(engine, plain):
    count = 6
    cut = engine.generate(PROMPTS[0], GREEDY | {"max_new_tokens": count})
    output = engine.generate(PROMPTS[0], GREEDY | {"max_new_tokens": count, "stop": cut.text[-3:]})
    assert output.finish_reason == {"type": "length", "length": count}
    assert output.text == cut.text


def test_a_chat_ends_at_the_end_of_the_turn(engine):
    messages = [{"role": "user", "content": "What is the capital of Italy? Answer in one short sentence."}]
    prompt = engine.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    output = engine.generate(prompt, GREEDY | {"max_new_tokens": 60})
    assert output.finish_reason == {
        "type": "stop",
        "matched": engine.tokenizer.convert_tokens_to_ids("<|im_end|>"),
    }
    assert "Rome" in output.text
    assert "<|im_end|>" not in output.text
    special = engine.generate(
        prompt, GREEDY | {"max_new_tokens": 60, "skip_special_tokens": False, "no_stop_trim": True}
    )
    assert special.text == output.text + "<|im_end|>"


def test_token_text_in_logprobs(engine, plain):
    output = engine.generate(
        PROMPTS[0],
        GREEDY,
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=1,
        return_text_in_logprobs=True,
    )
    assert "".join(t[2] for t in output.input_token_logprobs) == PROMPTS[0]
    assert "".join(t[2] for t in output.output_token_logprobs) == engine.tokenizer.decode(output.token_ids)
    assert output.token_ids == plain[0].token_ids


def test_penalties_and_bias_act(engine, plain):
    again = engine.generate(PROMPTS[0], GREEDY | {"repetition_penalty": 1.8, "frequency_penalty": 1.5})
    assert again.token_ids != plain[0].token_ids
    first = plain[0].token_ids[0]
    assert engine.generate(PROMPTS[0], GREEDY | {"logit_bias": {first: -100.0}}).token_ids[0] != first
    forced = engine.generate(PROMPTS[0], GREEDY | {"logit_bias": {str(7042): 100.0}, "max_new_tokens": 3})
    assert forced.token_ids == (7042, 7042, 7042)


def test_min_new_tokens_postpones_the_end(engine):
    messages = [{"role": "user", "content": "What is the capital of Italy? Answer in one short sentence."}]
    prompt = engine.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    short = engine.generate(prompt, GREEDY | {"max_new_tokens": 60})
    least = short.completion_tokens + 5
    longer = engine.generate(prompt, GREEDY | {"max_new_tokens": 60, "min_new_tokens": least})
    assert short.finish_reason["type"] == "stop"
    assert longer.completion_tokens >= least
    assert longer.token_ids[: short.completion_tokens - 1] == short.token_ids[:-1]


def test_unicode_prompts_round_trip_through_the_stream(engine):
    prompt = "日本語 🎌 ñandú — "
    chunks = list(engine.generate(prompt, {"temperature": 1.5, "seed": 3, "max_new_tokens": 40}, stream=True))
    assert all(b.text.startswith(a.text) for a, b in itertools.pairwise(chunks))
    assert all("\ufffd" not in chunk.text for chunk in chunks[:-1])


def test_a_gguf_file_just_works(smollm2_gguf, plain):
    with rootlet.Engine(str(smollm2_gguf), dtype="float32", max_total_tokens=2000) as engine:
        assert [o.text for o in engine.generate(PROMPTS, GREEDY)] == [o.text for o in plain]
