"""Every feature together with every other: the tokens are those of a plain run.

The plain run has none of the machinery: an engine without prefix cache that computes prompts whole, one
request at a time, nothing streamed. What changes the tokens it gets in the plainest form: samples as requests
of their own, a session's context spelled out, embeddings as their tokens, a custom rule as a logit bias.
"""

from __future__ import annotations

import itertools
from functools import cached_property
from pathlib import Path

import pytest
import torch
from tiny_llama import SMOLLM2_VOCAB_SIZE, write_tiny_llama

import rootlet
from rootlet.errors import InvalidRequestError
from rootlet.models.loader import load_model
from rootlet.sampling.seeds import derive_seed

FEATURES = [
    "radix hit", "chunked prefill", "preemption", "streaming", "n", "logprobs", "penalties", "seed",
    "constraint", "stop string", "custom processor", "hidden states", "session", "input embeds",
    "neighbour aborted", "sampling mask", "continued",
]  # fmt: skip
PAIRS = list(itertools.combinations(FEATURES, 2))
REFUSED = {  # pairs that have no meaning, and what is said about them
    frozenset(("n", "session")): "one output at a time",
    frozenset(("input embeds", "session")): "made of tokens",
}
PROMPT = [300 + (977 * i) % 40_000 for i in range(40)]
NEW_TOKENS = 20
CUT = 5  # tokens that a request has when it is aborted, to be continued
SAMPLES = 3
SEED = 1234
# free at first, then forced, then free again for longer than anybody asks
CONSTRAINT = r"[a-z]{3}: the quick brown fox jumps over [a-z0-9 ]{60}"


class Engines:
    """Engines of one device by their options, each built once, and the answers of a plain one.

    Of the very small Llama with the vocabulary of SmolLM2, so that it has a tokenizer; driven by hand, so
    that everything happens at a known step. ``options`` are those of all engines, ``plain`` of the plain one.
    """

    def __init__(self, tokenizer: Path, folder: Path, *, plain=(), **options) -> None:
        self._folder = write_tiny_llama(folder, SMOLLM2_VOCAB_SIZE)
        self._options = {"max_total_tokens": 2048, "page_size": 4, "dtype": "float32"} | options
        self._options |= {"load_format": "dummy", "tokenizer_path": str(tokenizer), "step_by_hand": True}
        self._plain = {"disable_radix_cache": True, "chunked_prefill_size": -1, "disable_jump_forward": True}
        self._plain |= dict(plain)
        self._built: dict[str, rootlet.Engine] = {}
        self._answers: dict[str, rootlet.RequestOutput] = {}

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *exc_info) -> None:
        for engine in self._built.values():
            engine.close()

    def idle(self, **options) -> rootlet.Engine:
        """The engine with these options, nothing running and nothing cached."""
        key = repr(options)
        if key not in self._built:
            self._built[key] = rootlet.Engine(self._folder, **(self._options | options))
        engine = self._built[key]
        while engine.step():  # what was left in flight belongs to nobody now
            pass
        assert engine.flush_cache()
        return engine

    def plain(self, ids, **params) -> rootlet.RequestOutput:
        """What one plain request is answered; every distinct one is computed once."""
        key = repr((ids, params))
        if key not in self._answers:
            settings = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True} | params
            self._answers[key] = self.idle(**self._plain).generate(
                input_ids=ids,
                sampling_params=settings,
                return_logprob=True,
                logprob_start_len=0,
                return_hidden_states=True,
                return_sampling_mask=True,
            )
        return self._answers[key]

    @cached_property
    def table(self) -> torch.Tensor:
        """The embedding of every token."""
        model = load_model(self._folder, dtype="float32", load_format="dummy").model
        return model.get_weight("model.embed_tokens.weight").float()


def ban(logits, custom_param_list):
    """The custom rule of these tests."""
    for row, params in zip(logits, custom_param_list):
        row[params["banned"]] = -float("inf")
    return logits


class Composed:
    """A request with the chosen features, and the plain ones that say what it must answer."""

    def __init__(self, features, engines: Engines) -> None:
        plain = engines.plain
        self.features = features
        self.params = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
        self.args: dict = {}
        self.context = list(PROMPT)
        if "session" in features:
            self.turn = plain(PROMPT[:20], max_new_tokens=3)
            self.context = [*PROMPT[:20], *self.turn.token_ids, *PROMPT[20:]]
        same = {}  # parameters that mean the same in the plain run
        if "penalties" in features:
            same |= {"frequency_penalty": 0.5, "presence_penalty": 0.3}
            same |= {} if "input embeds" in features else {"repetition_penalty": 1.3}
        if "seed" in features:
            # few tokens with a large share each: rounding moves no border of theirs across a random number
            same |= {"temperature": 1.0, "top_k": 50, "seed": SEED}
        if "constraint" in features:
            same |= {"regex": CONSTRAINT}
        self.params |= same
        if "custom processor" in features:
            banned = plain(self.context, **same).token_ids[0]  # so that the rule matters
            same = same | {"logit_bias": {banned: -100.0}}
            self.args["custom_logit_processor"] = ban
            self.params["custom_params"] = {"banned": banned}
        seeds = [{}]
        if "n" in features:
            self.params["n"] = SAMPLES
            seeds = [{"seed": derive_seed(SEED, j)} if "seed" in features else {} for j in range(SAMPLES)]
        self.expected = [plain(self.context, **(same | seed)) for seed in seeds]
        if "stop string" in features:
            tokenizer_text = self.expected[0].text
            self.params["stop"] = [tokenizer_text[len(tokenizer_text) * 3 // 4 :][:4]]
            stop = {"stop": self.params["stop"]}
            self.expected = [plain(self.context, **(same | seed | stop)) for seed in seeds]
        if "logprobs" in features:
            start = None if "input embeds" in features else 0
            self.args |= {"return_logprob": True, "logprob_start_len": start, "top_logprobs_num": 2}
        if "sampling mask" in features:
            self.args["return_sampling_mask"] = True
        if "hidden states" in features:
            self.args["return_hidden_states"] = True
        if "streaming" in features or "neighbour aborted" in features:
            self.args["stream"] = True
        if "input embeds" in features:
            self.args["input_embeds"] = engines.table[self.context]
        elif "session" not in features:
            self.args["input_ids"] = self.context

    def options(self) -> dict:
        """Of the engine it runs in."""
        options = {}
        if "chunked prefill" in self.features:
            options["chunked_prefill_size"] = 7
        if "preemption" in self.features:
            options["max_total_tokens"] = -(-(len(self.context) + 32) // 4) * 4
        return options

    def run(self, engine) -> list:
        """The outputs, by sample."""
        if "constraint" in self.features:  # compiled now, while nobody else runs
            params = {"regex": CONSTRAINT, "max_new_tokens": 1}
            engine.generate(input_ids=[7, 8, 9], sampling_params=params)
        if "radix hit" in self.features and "session" not in self.features:
            prompt = {k: self.args[k] for k in ("input_ids", "input_embeds") if k in self.args}
            engine.generate(**prompt, sampling_params={"temperature": 0, "max_new_tokens": 1})
        if "session" in self.features:
            session = engine.open_session()
            turn = engine.generate(
                input_ids=PROMPT[:20],
                sampling_params={"temperature": 0, "max_new_tokens": 3, "ignore_eos": True},
                session_params={"id": session},
            )
            assert turn.token_ids == self.turn.token_ids
            self.args["session_params"] = {"id": session, "rid": turn.rid}
            if "input embeds" not in self.features:
                self.args["input_ids"] = PROMPT[20:]
        older, aborted = ("preemption" in self.features), ("neighbour aborted" in self.features)
        # older than ours, so it is not the one preempted
        neighbour = self._neighbour(engine) if older else None
        doomed = self._neighbour(engine) if aborted else None
        if "continued" in self.features:
            parts = self._parts(engine)
            outputs = engine.generate(continue_from=parts, stream=self.args.get("stream", False))
        else:
            outputs = engine.generate(sampling_params=self.params, **self.args)
        if self.args.get("stream"):
            outputs = self._drain(outputs, doomed)
        if neighbour is not None:
            neighbour.result()
        return outputs if isinstance(outputs, list) else [outputs]

    def _parts(self, engine) -> list:
        """What there is of each sample when it is aborted on its way."""
        latest = {}
        for chunk in engine.generate(sampling_params=self.params, **self.args | {"stream": True}):
            latest[chunk.index] = chunk
            if chunk.completion_tokens >= CUT:
                engine.abort(chunk.rid)
        parts = [latest[index] for index in sorted(latest, key=lambda index: index or 0)]
        assert all(part.finish_reason["type"] == "abort" for part in parts)
        assert all(CUT <= part.completion_tokens < NEW_TOKENS for part in parts)
        return parts

    def _neighbour(self, engine):
        """A request that has run for a step."""
        params = {"temperature": 0, "max_new_tokens": 44, "ignore_eos": True}
        handle = engine.submit(input_ids=PROMPT[5:13], sampling_params=params)
        engine.step()
        return handle

    def _drain(self, chunks, doomed) -> list:
        """The last snapshot of each sample; ``doomed`` is aborted on the way."""
        latest, texts = {}, {}
        for i, chunk in enumerate(chunks):
            assert chunk.text.startswith(texts.get(chunk.index, ""))
            latest[chunk.index], texts[chunk.index] = chunk, chunk.text
            if i == 3 and doomed is not None:
                doomed.abort()
        if doomed is not None:
            assert doomed.result().finish_reason["type"] == "abort"
        return [latest[index] for index in sorted(latest, key=lambda index: index or 0)]


def check_pair(pair, engines: Engines) -> None:
    """A request with both features is answered as a plain one."""
    composed = Composed(pair, engines)
    engine = engines.idle(**composed.options())
    if frozenset(pair) in REFUSED:
        with pytest.raises(InvalidRequestError, match=REFUSED[frozenset(pair)]):
            composed.run(engine)
        return
    before = engine.stats().num_preemptions
    outputs = composed.run(engine)
    num_preemptions = engine.stats().num_preemptions - before
    assert [output.token_ids for output in outputs] == [output.token_ids for output in composed.expected]
    assert [output.text for output in outputs] == [output.text for output in composed.expected]
    reasons = [output.finish_reason for output in outputs]
    assert reasons == [output.finish_reason for output in composed.expected]
    check_machinery(pair, outputs, num_preemptions)
    for output, expected in zip(outputs, composed.expected):
        check_details(pair, output, expected, processed="custom processor" in pair)


def check_machinery(pair, outputs, num_preemptions):
    """The feature took part: a pair in which it slept shows nothing."""
    if "preemption" in pair:
        assert num_preemptions > 0
    computes_all = {"hidden states", "logprobs"} & set(pair) and "input embeds" not in pair
    if "radix hit" in pair and not computes_all:
        assert all(output.cached_tokens > 0 for output in outputs)
    if "stop string" in pair:
        assert outputs[0].finish_reason["type"] == "stop"


def check_details(pair, output, expected, *, processed):
    """Log-probabilities and hidden states, where asked for, are those of the plain run."""
    if "logprobs" in pair and not processed:
        names = ["output_token_logprobs"] + ["input_token_logprobs"] * ("input embeds" not in pair)
        for name in names:
            got, want = getattr(output, name), getattr(expected, name)
            assert [t[1] for t in got] == [t[1] for t in want]
            pairs = [(a[0], b[0]) for a, b in zip(got, want) if b[0] is not None]
            assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], abs=1e-4)
    if "sampling mask" in pair:
        for token, got, want in zip(
            output.token_ids, output.sampling_mask, expected.sampling_mask, strict=True
        ):
            assert got is None or token in got
            if processed:
                continue  # the plain run's bias bans nothing
            assert (got is None) == (want is None)
            # rounding may let another token in at the edge
            assert got is None or len(set(got.tolist()) ^ set(want.tolist())) <= 2
    if "hidden states" in pair:
        for got, want in zip(output.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
