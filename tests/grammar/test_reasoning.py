"""Reasoning and content of a reply, however its text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.errors import ConfigError
from rootlet.grammar.reasoning import ReasoningSplitter, get_reasoning_format

THINK = get_reasoning_format("qwen3")


def split(pieces, *, inside):
    splitter = ReasoningSplitter(THINK, inside=inside)
    parts = [splitter.feed(piece) for piece in pieces] + [splitter.finish()]
    return "".join(part.reasoning for part in parts), "".join(part.content for part in parts)


PIECES = st.lists(
    st.text(max_size=4) | st.sampled_from(["<think>", "</think>", "<thi", "</", "\n", " ", "so"]), max_size=10
)


@settings(max_examples=400, deadline=None)
@given(PIECES, st.booleans())
def test_any_chunking_splits_like_the_whole(pieces, inside):
    text = "".join(pieces)
    whole = split([text], inside=inside)
    assert split(pieces, inside=inside) == split(text, inside=inside) == whole
    if not inside and not text.strip(" \t\r\n").startswith("<think>"):
        assert whole == ("", text)


@pytest.mark.parametrize(
    ("text", "inside", "parts"),
    [
        ("<think>\nHm.\n\nYes.\n</think>\n\nParis. ", False, ("Hm.\n\nYes.", "Paris. ")),
        ("Hm.\n</think>\n\nParis.", True, ("Hm.", "Paris.")),
        ("\n<think>Hm.</think>Paris.", True, ("Hm.", "Paris.")),
        (" Paris.\n", False, ("", " Paris.\n")),
        ("<think>\n\n</think>\n\nParis.", False, ("", "Paris.")),
        ("<think>Hm. </thi", False, ("Hm. </thi", "")),
        ("Hm.\n", True, ("Hm.", "")),
        ("Paris. <think>x</think>", False, ("", "Paris. <think>x</think>")),
        ("<think>x</think>Paris</think>", False, ("x", "Paris</think>")),
    ],
)
def test_cases(text, inside, parts):
    assert split([text], inside=inside) == parts


@pytest.mark.parametrize(
    ("name", "prompt", "reply_start", "begins_in"),
    [
        ("qwen3", "<|im_start|>assistant\n", "", False),
        ("qwen3", "<|im_start|>assistant\n<think>\n", "", True),
        ("qwen3", "assistant\n<think>\n\n</think>\n\n", "", False),
        ("deepseek-r1", "<Assistant>", "", True),
        ("deepseek-r1", "<Assistant><think>\n\n</think>\n\n", "", False),
        ("deepseek-r1", "<Assistant>The", "The", False),
        ("deepseek-r1", "<Assistant><think>So", "<think>So", True),
        ("qwen3", "assistant\n<think>a</think>So", "<think>a</think>So", False),
    ],
)
def test_where_a_reply_begins(name, prompt, reply_start, begins_in):
    assert get_reasoning_format(name).begins_in(prompt, reply_start) is begins_in


def test_unknown_names():
    with pytest.raises(ConfigError, match="reasoning_parser must be one of deepseek-r1, qwen3, got 'r1'"):
        get_reasoning_format("r1")
