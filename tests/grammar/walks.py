"""Random outputs of grammars, over a small vocabulary."""

from __future__ import annotations

import random

import numpy as np

from rootlet.grammar.interface import Vocabulary

# every byte is a token, and a few longer ones that cross the borders of what grammars are made of
WORDS = (
    *('{"', '": ', ", ", '",', "true", "null", "ab", "ba", "</", "é", '"}', "0.", "10"),
    *("a\\", "b\n", 'é"x', "]]", "],", "}}", "},", "))", ")+"),
)
END = 256
VOCABULARY = Vocabulary(
    [*(bytes([byte]) for byte in range(256)), b"", *(word.encode() for word in WORDS)],
    (END,),
    lambda text: list(text.encode()),
)
SIZE = len(VOCABULARY.tokens)
MAX_TOKENS = 60


def masks() -> np.ndarray:
    return np.zeros((1, -(-SIZE // 32)), dtype=np.int32)


def allowed(matcher) -> list[int]:
    mask = masks()
    matcher.fill(mask, 0)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return np.nonzero(bits[:SIZE])[0].tolist()


def choose(draw: random.Random, tokens: list[int]) -> int:
    """Ends and signs of structure more often than their share, so that walks come to an end."""
    if END in tokens and (draw.random() < 0.5 or len(tokens) == 1):
        return END
    rest = [token for token in tokens if token != END]
    signs = [token for token in rest if VOCABULARY.tokens[token][:1] in (b'"', b"}", b"]", b"\\", b">", b".")]
    return draw.choice(signs if signs and draw.random() < 0.4 else rest)


def walk(matchers, draw: random.Random) -> tuple[bytes, bool]:
    """A random output, and whether it is complete; all matchers must agree all the way."""
    text = b""
    for _ in range(MAX_TOKENS):
        tokens = allowed(matchers[0])
        assert tokens, f"nothing may follow {text!r}"
        forced = matchers[0].forced_text().encode()
        for other in matchers[1:]:
            theirs = allowed(other)
            if len({VOCABULARY.tokens[token][:1] for token in tokens}) == 1:
                # of what is forced llguidance allows the tokenizer's own cut only
                assert set(theirs) <= set(tokens)
                tokens = theirs
            assert theirs == tokens, text
        token = choose(draw, tokens)
        for matcher in matchers:
            assert not matcher.accept(END) or END in tokens
            if END in tokens:
                matcher.rollback(1)
            assert matcher.accept(token)
        if token == END:
            assert not forced
            assert all(matcher.is_terminated for matcher in matchers)
            return text, True
        piece = VOCABULARY.tokens[token]
        assert forced.startswith(piece[: len(forced)]), (forced, piece)
        text += piece
    return text, False


def takes(grammar, text: str) -> bool:
    """Whether an output is let through, byte by byte, each in the mask before."""
    matcher = grammar.matcher()
    for token in [*text.encode(), END]:
        is_allowed = token in allowed(matcher)
        assert matcher.accept(token) == is_allowed, text
        if not is_allowed:
            return False
    return True
