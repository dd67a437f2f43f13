"""SentencePiece BPE from GGUF metadata, against the algorithm written plainly and transformers."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rootlet.errors import RootletError
from rootlet.models.gguf_tokenizer import load_gguf_tokenizer

from .vocabularies import plain_sentencepiece, texts, write_vocabulary

PIECES = [
    "\u2581",
    "a",
    "b",
    "c",
    "1",
    "ab",
    "\u2581a",
    "abc",
    "bc",
    "\u2581ab",
    "\u2581\u2581",
    "\u2581\u2581\u2581",
    "11",
    "é",
    "ca",
]


def sentencepiece_file(path: Path, pieces: list[str] = PIECES, **fields) -> Path:
    """<unk> <s> </s>, 256 byte tokens, the user-defined <a>, then pieces: letters first, merges by score."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "<a>", *pieces]
    types = [2, 3, 3] + [6] * 256 + [4] + [1] * len(pieces)
    scores = [0.0] * 260 + [-float(i) for i in range(len(pieces))]
    return write_vocabulary(path, "llama", tokens, types, scores=scores, **fields)


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no-prefix"])
def sentencepiece(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("sp") / "v.gguf"
    return request.param, load_gguf_tokenizer(sentencepiece_file(path, add_space_prefix=request.param))


@given(text=st.text("abc1é \n漢🎉", max_size=12) | texts)
@settings(deadline=None, max_examples=200)
def test_sentencepiece_by_the_definition(sentencepiece, text):
    adds_space, tokenizer = sentencepiece
    ids = tokenizer.encode(text, add_special_tokens=False)
    special = ["<unk>", "<s>", "</s>", "<a>"]
    assert tokenizer.convert_ids_to_tokens(ids) == plain_sentencepiece(text, PIECES, adds_space, special)
    if not any(token in text for token in special) and "\u2581" not in text:
        assert tokenizer.decode(ids) == text


def test_sentencepiece_defaults(tmp_path):
    """Files that are silent: BOS is added, a space put in front, the first three tokens are unk, bos, eos."""
    tokenizer = load_gguf_tokenizer(sentencepiece_file(tmp_path / "v.gguf"))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("ab")) == ["<s>", "\u2581ab"]
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    silent = load_gguf_tokenizer(sentencepiece_file(tmp_path / "w.gguf", add_bos_token=False, eos_token_id=0))
    assert silent.convert_ids_to_tokens(silent.encode("ab")) == ["\u2581ab"]
    assert silent.eos_token == "<unk>"


@given(text=st.text("abc1é \n漢", max_size=12))
@settings(deadline=None, max_examples=60)
def test_sentencepiece_agrees_with_transformers(reference_sentencepiece, text):
    """On texts that do not start with a space, where transformers 5 adds none although SentencePiece does."""
    ours, theirs = reference_sentencepiece
    text = text.lstrip(" ")
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)


@pytest.fixture(scope="module")
def reference_sentencepiece(tmp_path_factory):
    from transformers import PreTrainedTokenizerFast

    path = sentencepiece_file(
        tmp_path_factory.mktemp("sp") / "v.gguf", bos_token_id=1, eos_token_id=2, unknown_token_id=0
    )
    return load_gguf_tokenizer(path), PreTrainedTokenizerFast.from_pretrained(
        path.parent, gguf_file=path.name
    )


# damage


@given(changes=st.lists(st.tuples(st.integers(24, 6000), st.integers(0, 255)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_vocabulary_never_fails_otherwise(tmp_path, undamaged, changes):
    data = bytearray(undamaged.read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    path = tmp_path / "v.gguf"
    path.write_bytes(bytes(data))
    with contextlib.suppress(RootletError):
        load_gguf_tokenizer(path).encode("abc")


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory) -> Path:
    return sentencepiece_file(tmp_path_factory.mktemp("sp") / "v.gguf")
