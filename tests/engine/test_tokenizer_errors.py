"""Tokenizers come with models: whatever one raises ends its own request, and what cannot fit is not read."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import rootlet
from rootlet.engine.requests.encoding import TextEncoder, reach_of
from rootlet.engine.schedule.invariants import check_invariants
from rootlet.errors import InvalidRequestError, RequestTooLongError, RootletError, TokenizerError
from rootlet.models.tokenizer import load_tokenizer

GREEDY = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}


class Broken(BaseException):
    """Raised by a tokenizer."""


@pytest.fixture(scope="module")
def engine(tiny_text_model):
    with rootlet.Engine(tiny_text_model, load_format="dummy", max_total_tokens=4096) as engine:
        yield engine


def breaks(*args, **kwargs):
    raise Broken


@pytest.mark.parametrize("place", ["start", "push", "finish", "token_text"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_detokenizer_that_raises_ends_its_own_request(engine, monkeypatch, place, stream):
    core = engine._loop._core
    other = engine.submit("the quick", GREEDY | {"max_new_tokens": 200})
    args = {"prompt": "brown fox", "sampling_params": GREEDY | {"stop": ["zzzzzzz"]}}
    args |= {"return_logprob": True, "return_text_in_logprobs": True}
    if place == "token_text":
        monkeypatch.setattr(core, "_token_text", breaks)
    else:
        start = core._detokenizer.start

        def started(params, prompt_ids=()):
            text = start(params, prompt_ids)
            if "zzzzzzz" in params.stop:
                if place == "start":
                    raise Broken
                monkeypatch.setattr(text, place, breaks)
            return text

        monkeypatch.setattr(core._detokenizer, "start", started)
    with pytest.raises(TokenizerError, match="Broken") as caught:
        list(engine.generate(**args, stream=stream))
    assert isinstance(caught.value.__cause__, Broken)
    monkeypatch.undo()
    assert other.result(60).completion_tokens == 200
    assert engine.generate("brown fox", GREEDY).completion_tokens == 6
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.pages_free + stats.pages_cached == stats.pages_total
    check_invariants(core.scheduler)


class Refusing:
    """A tokenizer that cannot read."""

    chat_template = "{{ messages }}"

    def __call__(self, texts, **options):
        raise Broken

    encode = __call__


def test_a_tokenizer_that_raises_is_an_error_of_the_call():
    encoder = TextEncoder(Refusing(), 10)
    for call in (lambda: encoder.encode_all(["a"]), lambda: encoder.encode("a")):
        with pytest.raises(TokenizerError, match="Broken") as caught:
            call()
        assert isinstance(caught.value.__cause__, Broken)


def test_prompts_that_cannot_fit_are_not_read(engine, monkeypatch):
    monkeypatch.setattr(TextEncoder, "_call", breaks)
    huge = "a page " * 10**6
    calls = [
        lambda: engine.generate(huge),
        lambda: engine.generate(["short", huge]),
        lambda: engine.submit(huge),
        lambda: engine.chat([{"role": "user", "content": huge}]),
        lambda: engine.score(huge, [" fox"]),
    ]
    for call in calls:
        with pytest.raises(RequestTooLongError, match="characters has at least"):
            call()
    with pytest.raises(Broken):
        engine.generate("short")


def test_an_event_loop_goes_on_while_long_prompts_are_read(engine, monkeypatch):
    """The tokenizer waits here for something that only the loop can do."""
    text = "a page " * 10_000
    moved = threading.Event()
    call = TextEncoder._call

    def waits(self, function, *args, **options):
        assert moved.wait(60)
        return call(self, function, *args, **options)

    monkeypatch.setattr(TextEncoder, "_call", waits)
    monkeypatch.setattr(engine._factory._encoder, "_max_tokens", None)

    async def refused(start):
        moved.clear()
        asyncio.get_running_loop().call_later(0.01, moved.set)
        with pytest.raises(RequestTooLongError):
            await start()

    async def main():
        await refused(lambda: engine.async_generate(text))
        await refused(lambda: engine.async_chat([{"role": "user", "content": text}]))
        await refused(lambda: engine.async_score(text, [" fox"]))
        moved.clear()
        task = asyncio.ensure_future(engine.async_generate(text, GREEDY))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        moved.set()

    asyncio.run(main())
    assert engine.generate("a", GREEDY).completion_tokens == 6


def test_with_auto_truncate_they_are_cut_before_they_are_read(tiny_text_model):
    options = {"load_format": "dummy", "max_total_tokens": 4096, "allow_auto_truncate": True}
    with rootlet.Engine(tiny_text_model, **options) as engine:
        ids = engine.tokenizer("a page " * 1000)["input_ids"]
        out = engine.generate("a page " * 10**6, GREEDY)
        assert out.prompt_tokens == 512 - 6
        assert out.token_ids == engine.generate(input_ids=ids[:506], sampling_params=GREEDY).token_ids


ODD = [
    "\ud800", "a\udfffb", "\x00" * 50, " " * 10**7, "e" + "\u0301" * 10**6, "\u202e\ufeff\u200d",
    "\U0010ffff" * 9, "\ufffd" * 99, "", "\r\n\t\v\f", "<s></s><|im_end|>" * 40, "ﷺ" * 100,
]  # fmt: skip


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_texts_end_in_an_answer_or_an_error_of_ours(engine, text):
    calls = [
        lambda: engine.generate(text, GREEDY),
        lambda: engine.generate("a", GREEDY | {"stop": text}),
        lambda: engine.chat([{"role": "user", "content": text}], GREEDY),
        lambda: engine.score("a", [text]),
        lambda: engine.generate("a", GREEDY, rid=text),
    ]
    for call in calls:
        try:
            call()
        except RootletError as error:
            json.dumps(str(error))
    assert engine.generate("a", GREEDY).completion_tokens == 6


def tokenizer_with(normalizer=None, added=(), byte_fallback=False):
    """A byte-level or byte-fallback BPE with a few merges, and what stands before it."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = [f"<0x{i:02X}>" for i in range(256)] if byte_fallback else sorted(alphabet)
    words += ["▁", "a", "aa"] if byte_fallback else ["aa", "ĠĠ"]
    merges = [("a", "a")] if byte_fallback else [("a", "a"), ("Ġ", "Ġ")]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=byte_fallback, unk_token=None)
    )
    if byte_fallback:
        normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


KNOWN = {
    "plain": tokenizer_with(),
    "composing": tokenizer_with(normalizers.NFC()),
    "compatible": tokenizer_with(normalizers.NFKC()),
    "greedy for space": tokenizer_with(added=[AddedToken("<|e|>", rstrip=True, lstrip=True)]),
    "byte fallback": tokenizer_with(byte_fallback=True),
}
UNKNOWN = {
    "strip": tokenizer_with(normalizers.Strip()),
    "accents": tokenizer_with(normalizers.StripAccents()),
    "shorter": tokenizer_with(normalizers.Replace("aaaa", "a")),
}
TEXTS = st.lists(
    st.sampled_from(
        ["a", " ", "  \n", "e\u0301", "\u0301", "ᾳ\u0313\u0300", "각", "ﷺ", "<|e|>", "\x00", "😀", "ß"]
    )
).map(lambda parts: "".join(part * 3 for part in parts))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS, name=st.sampled_from(sorted(KNOWN)))
def test_no_prompt_that_fits_is_refused_unread(text, name):
    tokenizer = KNOWN[name]
    assert reach_of(tokenizer).least_tokens(text) <= len(tokenizer(text)["input_ids"])


def test_where_the_reach_of_a_token_is_unknown_every_prompt_is_read():
    assert [reach_of(tokenizer) for tokenizer in UNKNOWN.values()] == [None] * 3
    assert len(TextEncoder(UNKNOWN["shorter"], 2).encode("a" * 8)) <= 2


def test_the_real_tokenizer_has_a_reach(smollm2_gguf):
    reach = reach_of(load_tokenizer(str(smollm2_gguf)))
    assert reach.chars < 200
    assert "\x04" in reach.silent
    assert reach.least_tokens("\x04" * 10**6 + "a" * 400) == -(-400 // reach.chars)


def test_lone_surrogates_are_named(engine):
    with pytest.raises(InvalidRequestError, match="character 1 is a lone surrogate"):
        engine.generate("a\ud800")
