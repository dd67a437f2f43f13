"""Streamed text against ``tokenizer.decode`` of everything, over real and awkward tokenizers."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rootlet.engine.replies.detokenizer import Detokenizer, StopMatcher
from rootlet.engine.replies.token_text import PieceText, WindowText
from rootlet.models.tokenizer import load_tokenizer
from rootlet.sampling.params import SamplingParams

SETTINGS = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            [
                "Hello world",
                " ",
                "\n\n",
                "👩‍👩‍👧‍👦",
                "🇨🇭",
                "naïve café",
                "日本語のテキスト",
                "अनुच्छेद",
                "�",
                "<|im_end|>",
                "def f(x):\n    ",
            ]
        ),
    ),
    max_size=6,
).map("".join)
SIZES = st.lists(st.integers(1, 7), max_size=30)


class PlainTokenizer:
    """The same tokenizer without its fast backend, as a slow one looks; counts the tokens it decodes."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.added_tokens_decoder = tokenizer.added_tokens_decoder
        self.decoded_tokens = 0

    def decode(self, token_ids, **options):
        self.decoded_tokens += len(token_ids)
        return self._tokenizer.decode(token_ids, **options)


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf):
    """The real byte-level tokenizer."""
    return load_tokenizer(smollm2_gguf)


@pytest.fixture(scope="module")
def broken_ids(smollm2):
    """Tokens that hold only a part of a character."""
    return [i for i in range(len(smollm2)) if "�" in smollm2.decode([i])]


@pytest.fixture(scope="module")
def sentencepiece():
    """A tokenizer decoding as Llama 2 does: words begin with a space mark, rare characters are bytes."""
    words = ["▁", "▁Paris", "▁is", "▁the", "é", "a", "b", ".", "▁▁", "日"]
    vocab = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + words
    backend = Tokenizer(
        models.BPE({t: i for i, t in enumerate(vocab)}, [], byte_fallback=True, unk_token="<unk>")
    )
    backend.add_special_tokens([AddedToken(t, special=True) for t in vocab[:3]])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module", params=["pieces", "window"])
def detokenizer(request, smollm2):
    """Both decoders over the same tokenizer."""
    return Detokenizer(smollm2 if request.param == "pieces" else PlainTokenizer(smollm2))


def decode(tokenizer, ids, **options):
    return tokenizer.decode(
        ids, **{"skip_special_tokens": True, "clean_up_tokenization_spaces": False} | options
    )


def params(**fields):
    return SamplingParams(**fields)


def chunks(ids, sizes):
    """Cut ids into pieces of the given sizes, the rest one by one."""
    start = 0
    for size in [*sizes, *[1] * len(ids)]:
        if start < len(ids):
            yield ids[start : start + size]
            start += size


def stream_all(detokenizer, ids, sizes, parameters):
    """Push ids in pieces; check that the shown text only grows. Return (texts shown, final text, stream)."""
    stream = detokenizer.start(parameters)
    shown = [stream.text]
    for piece in chunks(ids, sizes):
        stream.push(piece)
        shown.append(stream.text)
    shown.append(stream.finish())
    for before, after in itertools.pairwise(shown):
        assert after.startswith(before)
    return shown, shown[-1], stream


def test_the_real_tokenizer_uses_pieces(smollm2, sentencepiece):
    assert isinstance(Detokenizer(smollm2).start(params())._decoder, PieceText)
    assert isinstance(Detokenizer(sentencepiece).start(params())._decoder, PieceText)
    assert isinstance(Detokenizer(PlainTokenizer(smollm2)).start(params())._decoder, WindowText)


@SETTINGS
@given(text=TEXTS, sizes=SIZES, skip=st.booleans())
def test_streamed_text_is_the_text(smollm2, detokenizer, text, sizes, skip):
    ids = smollm2.encode(text)
    _, final, stream = stream_all(detokenizer, ids, sizes, params(skip_special_tokens=skip))
    assert final == decode(smollm2, ids, skip_special_tokens=skip)
    assert stream.num_tokens == len(ids)


@SETTINGS
@given(data=st.data(), sizes=SIZES, skip=st.booleans())
def test_any_ids_even_invalid_utf8(smollm2, broken_ids, detokenizer, data, sizes, skip):
    any_id = st.one_of(st.integers(0, len(smollm2) - 1), st.sampled_from(broken_ids), st.integers(0, 16))
    ids = data.draw(st.lists(any_id, max_size=24))
    parameters = params(skip_special_tokens=skip)
    _, final, _ = stream_all(detokenizer, ids, sizes, parameters)
    assert final == decode(smollm2, ids, skip_special_tokens=skip)
    assert final == detokenizer.decode(ids, parameters)


def test_bytes_that_never_become_a_character_appear_at_the_end(smollm2, detokenizer):
    first_bytes = smollm2.encode("👩")[:1]
    stream = detokenizer.start(params())
    stream.push(first_bytes)
    assert stream.text == ""
    assert stream.finish() == "�"
    stream = detokenizer.start(params())
    for _ in range(50):
        stream.push(first_bytes)
    assert set(stream.text) == {"�"}, "a long run of bad bytes must not wait for the end"
    assert stream.finish() == decode(smollm2, first_bytes * 50)


def test_ids_outside_the_vocabulary_are_no_text(smollm2):
    ids = smollm2.encode("a b")
    assert Detokenizer(smollm2).decode([ids[0], 10**6, *ids[1:]], params()) == "a b"


# Sentencepiece decoders


@SETTINGS
@given(ids=st.lists(st.integers(259, 268), max_size=20), sizes=SIZES)
def test_sentencepiece_words(sentencepiece, ids, sizes):
    for tokenizer in (sentencepiece, PlainTokenizer(sentencepiece)):
        _, final, _ = stream_all(Detokenizer(tokenizer), ids, sizes, params())
        assert final == decode(sentencepiece, ids)


@SETTINGS
@given(text=TEXTS, sizes=SIZES)
def test_sentencepiece_byte_tokens(sentencepiece, text, sizes):
    ids = [3 + byte for byte in text.encode()]
    _, final, _ = stream_all(Detokenizer(sentencepiece), ids, sizes, params())
    assert final == text.removeprefix(" ")


def test_a_bad_byte_does_not_spoil_good_neighbours(sentencepiece):
    euro = [3 + byte for byte in "€".encode()]
    assert Detokenizer(sentencepiece).decode([*euro, 3 + 0xFF, 265], params()) == "€�b"


@pytest.mark.parametrize("slow", [False, True])
def test_the_space_between_prompt_and_output_is_kept(sentencepiece, slow):
    bos, paris, is_ = 1, 260, 261
    detokenizer = Detokenizer(PlainTokenizer(sentencepiece) if slow else sentencepiece)
    assert detokenizer.decode([paris, is_], params()) == "Paris is"
    assert detokenizer.decode([paris, is_], params(), prompt_ids=[bos]) == "Paris is"
    assert detokenizer.decode([paris, is_], params(), prompt_ids=[bos, 262]) == " Paris is"


# Stop strings


@SETTINGS
@given(data=st.data(), text=TEXTS.filter(bool), sizes=SIZES)
def test_stop_strings(smollm2, detokenizer, data, text, sizes):
    ids = smollm2.encode(text)
    full = decode(smollm2, ids)
    start = st.integers(0, max(len(full) - 1, 0))
    inside = start.flatmap(lambda a: st.integers(1, 12).map(lambda size: full[a : a + size] or "?"))
    stops = data.draw(
        st.lists(st.one_of(inside, st.text("ab \n<", min_size=1, max_size=3)), min_size=1, max_size=3)
    )
    stops = [s for s in stops if "�" not in s and "<|" not in s] or ["#!"]
    parameters = params(stop=stops)
    shown, final, stream = stream_all(detokenizer, ids, sizes, parameters)

    ends = [(full.find(s) + len(s), order) for order, s in enumerate(stops) if s in full]
    if not ends:
        assert stream.matched is None
        assert final == full
        return
    winner = stops[min(ends)[1]]
    assert stream.matched == winner
    assert final == full[: full.find(winner)]
    assert not any(winner in text for text in shown)
    assert winner in decode(smollm2, ids[: stream.num_tokens])
    assert winner not in decode(smollm2, ids[: stream.num_tokens - 1])
    assert final == detokenizer.decode(ids, parameters)
    untrimmed = detokenizer.decode(ids, params(stop=stops, no_stop_trim=True))
    assert untrimmed == decode(smollm2, ids[: stream.num_tokens])


def test_the_stop_that_ends_first_wins_then_the_first_in_the_list(smollm2, detokenizer):
    ids = smollm2.encode("one two three")
    for stops, winner in [
        (["three", "two"], "two"),
        (["two three", "two"], "two"),
        (["wo", "two"], "wo"),
        (["two", "wo"], "two"),
        (["one two thr", "two thre"], "one two thr"),
    ]:
        assert detokenizer.start(params(stop=stops)).push(ids) == winner


def test_a_possible_stop_is_held_back_and_released(smollm2, detokenizer):
    stream = detokenizer.start(params(stop="\nUser:"))
    stream.push(smollm2.encode("Hi\nUs"))
    assert stream.text == "Hi"
    stream.push(smollm2.encode("ually"))
    assert stream.text == "Hi\nUsually"
    stream.push(smollm2.encode("\nUser"))
    assert stream.text == "Hi\nUsually"
    assert stream.finish() == "Hi\nUsually\nUser"


def test_only_tokens_up_to_the_match_are_taken(smollm2, detokenizer):
    before, after = smollm2.encode("a b STOP"), smollm2.encode(" and more STOP")
    stream = detokenizer.start(params(stop="STOP"))
    assert stream.push([*before, *after]) == "STOP"
    assert stream.push(after) == "STOP"
    assert stream.num_tokens == len(before)
    assert stream.finish() == stream.finish() == "a b "


def test_keeping_the_stop_string(smollm2, detokenizer):
    ids = smollm2.encode("yes STOPPED")
    trimmed, kept, late = (
        detokenizer.start(params(stop="STOP", no_stop_trim=k)) for k in (False, True, False)
    )
    for stream in (trimmed, kept, late):
        assert stream.push(ids) == "STOP"
    taken = decode(smollm2, ids[: trimmed.num_tokens])
    assert (trimmed.finish(), kept.finish(), late.finish(keep_stop=True)) == ("yes ", taken, taken)


def test_the_stop_token_is_left_out_unless_asked_for(smollm2, detokenizer):
    ids, newline = smollm2.encode("Paris"), smollm2.encode("\n")[0]
    assert detokenizer.decode(ids, params(), reason_token=newline) == "Paris"
    assert detokenizer.decode(ids, params(no_stop_trim=True), reason_token=newline) == "Paris\n"


def test_a_special_token_named_as_stop_string_matches_though_it_is_not_shown(smollm2, detokenizer):
    [end] = smollm2.encode("<|im_end|>")
    ids = [*smollm2.encode("Bye <"), end, *smollm2.encode(" more")]
    for skip in (True, False):
        stream = detokenizer.start(params(stop=["<|im_end|>", "<b"], skip_special_tokens=skip))
        assert stream.push(ids) == "<|im_end|>"
        assert stream.num_tokens == len(ids) - len(smollm2.encode(" more"))
        assert stream.finish() == "Bye <"


@given(st.text("ab", min_size=1, max_size=6), st.text("ab", max_size=40), st.integers(1, 5))
def test_matcher_agrees_with_find(stop, text, size):
    matcher, read = StopMatcher([stop]), 0
    for start in range(0, len(text), size):
        match = matcher.feed(text[start : start + size])
        if match is not None:
            assert start + match[1] == text.find(stop) + len(stop)
            return
        read = min(start + size, len(text))
        held = max(n for n in range(len(stop)) if text[:read].endswith(stop[:n]))
        assert matcher.pending == held
    assert stop not in text


# Cost


def test_decoding_work_is_linear(smollm2):
    """Each token is decoded a bounded number of times, with or without stop strings, good text or bad."""
    good = smollm2.encode("The quick brown fox jumps over 🦊🦊 lazy dogs. " * 100)
    bad = smollm2.encode("👩")[:1] * len(good)
    for ids in (good, bad):
        for stop in (None, ["never this", "ok ok ok"]):
            tokenizer = PlainTokenizer(smollm2)
            stream = Detokenizer(tokenizer).start(params(stop=stop))
            tokenizer.decoded_tokens = 0
            for token in ids:
                stream.push([token])
            stream.finish()
            assert tokenizer.decoded_tokens < 16 * len(ids)


def test_pieces_are_looked_up_once(smollm2, monkeypatch):
    detokenizer = Detokenizer(smollm2)
    looked_up = []
    compute = detokenizer._pieces._compute
    monkeypatch.setattr(
        detokenizer._pieces, "_compute", lambda token: looked_up.append(token) or compute(token)
    )
    ids = smollm2.encode("so many words, so many words")
    for _ in range(3):
        detokenizer.decode(ids, params())
    assert len(looked_up) == len(set(looked_up))
    assert len(looked_up) <= len(set(ids))


def test_params_need_only_the_text_fields(smollm2):
    """Any object with the fields about text will do: a stop given as a string or a list."""
    fields = SimpleNamespace(
        stop="b", skip_special_tokens=True, spaces_between_special_tokens=True, no_stop_trim=False
    )
    assert Detokenizer(smollm2).decode(smollm2.encode("a b c"), fields) == "a "
