"""Random mixes of requests: batch mates, order of arrival and state of the cache, all drawn from a seed."""

from __future__ import annotations

import random

import rootlet

SYSTEM = random.Random(0).choices(range(97), k=70)  # what several prompts begin with


def requests() -> list[dict]:
    """Arguments of ``submit``: prompts of 1 to 200 tokens, greedy and sampled in every way."""
    draw = random.Random(1)

    def ids(count: int) -> list[int]:
        return draw.choices(range(97), k=count)

    greedy = {"temperature": 0, "max_new_tokens": 12}
    warm = {"temperature": 0.9, "max_new_tokens": 12}
    asked = [
        (ids(1), greedy),
        (ids(5), greedy | {"max_new_tokens": 30}),
        (ids(64), greedy),
        (ids(130), warm | {"seed": 1}),
        (ids(200), greedy | {"max_new_tokens": 3}),
        (SYSTEM, greedy),
        (SYSTEM + ids(3), warm | {"seed": 2, "top_p": 0.9}),
        (SYSTEM + ids(20), greedy | {"frequency_penalty": 0.5}),
        (SYSTEM + ids(33), warm | {"seed": 3, "top_k": 7, "min_p": 0.02}),
        (SYSTEM[:40] + ids(60), warm | {"seed": 4, "repetition_penalty": 1.2, "logit_bias": {"3": 2.0}}),
    ]
    scored = {"return_logprob": True, "top_logprobs_num": 3}
    built = [
        {"input_ids": prompt, "sampling_params": {"ignore_eos": True} | params} | scored
        for prompt, params in asked
    ]
    built[2]["logprob_start_len"] = built[7]["logprob_start_len"] = 0
    return built


def answer(output: rootlet.RequestOutput) -> tuple:
    """Tokens and log-probabilities, to be compared exactly."""
    return (
        output.token_ids,
        output.input_token_logprobs,
        output.output_token_logprobs,
        output.input_top_logprobs,
        output.output_top_logprobs,
    )


def alone(engine: rootlet.Engine) -> list[tuple]:
    """The answer to each of :func:`requests`, by itself and from an empty cache."""
    answers = []
    for args in requests():
        engine.flush_cache()
        answers.append(answer(engine.submit(**args, stream=False).result()))
    return answers


def wrong_in_mix(engine: rootlet.Engine, expected: list[tuple], seed: int) -> list[int]:
    """Run a mix on an engine that is stepped by hand; the requests whose answers are not ``expected``."""
    draw = random.Random(seed)
    asked = requests()
    chosen = draw.choices(range(len(asked)), k=draw.choice((1, 2, 5, 9, 17, 30)))
    if draw.random() < 0.5:
        engine.flush_cache()
    handles = []
    for index in chosen:
        handles.append(engine.submit(**asked[index], stream=draw.random() < 0.3))
        for _ in range(draw.choice((0, 0, 1, 4))):
            engine.step()
    return [i for i, handle in zip(chosen, handles) if answer(handle.result()) != expected[i]]
