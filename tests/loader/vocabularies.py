"""Vocabularies as GGUF files, and the two tokenizer algorithms written plainly, to compare with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import regex
from hypothesis import strategies as st

LETTERS = "ab cd\n 1234 '.,é漢\u2581🎉\t"
WORDS = [
    "don't",
    "WE'LL",
    "\r\n\r\n",
    "   ",
    "x = 12345",
    "Ünï",
    "漢字",
    "🎉",
    "<s>",
    "<a>",
    "</s>",
    "e\u0301",
    "½",
]
texts = st.lists(st.text(LETTERS, max_size=8) | st.sampled_from(WORDS) | st.text(max_size=4), max_size=6).map(
    "".join
)


def write_vocabulary(path: Path, model: str, tokens: list[str], types: list[int], **fields) -> Path:
    """Write a GGUF file with a tokenizer and no tensors; ``fields`` go to ``tokenizer.ggml.<name>``.

    Fields that start with "chat" go to ``tokenizer.<name>``; None leaves a field out.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
    for name, value in fields.items():
        if value is not None:
            add[type(value)](
                f"tokenizer.{name}" if name.startswith("chat") else f"tokenizer.ggml.{name}", value
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_letters() -> dict[int, str]:
    """GPT-2's printable spelling of the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def merge_all(symbols: list[str], best: Callable[[str, str], float | None]) -> list[str]:
    """Join neighbours, lowest value first and leftmost among equals, until none can be joined."""
    while True:
        values = [(best(a, b), i) for i, (a, b) in enumerate(itertools.pairwise(symbols))]
        values = [value for value in values if value[0] is not None]
        if not values:
            return symbols
        i = min(values)[1]
        symbols[i : i + 2] = ["".join(symbols[i : i + 2])]


def split_special(text: str, special: list[str]) -> Iterator[tuple[bool, str]]:
    """(is special, part) of ``text``."""
    pattern = "|".join(regex.escape(token) for token in special)
    for part in regex.split(f"({pattern})", text):
        if part:
            yield part in special, part


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# the splitting rules as llama.cpp lists them: each regex splits what the one before left together
RULES = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [CONTRACTIONS + r"\p{N}{1,3}" + REST],
    "deepseek-r1-qwen": [CONTRACTIONS + r"\p{N}" + REST],
}


def split_keeping_gaps(text: str, rule: str) -> list[str]:
    """The matches of ``rule`` and what lies between them."""
    cuts = {0, len(text)} | {cut for match in regex.finditer(rule, text) for cut in match.span()}
    return [text[a:b] for a, b in itertools.pairwise(sorted(cuts))]


def plain_bpe(text: str, rules: list[str], merges: list[str], special: list[str]) -> list[str]:
    """Byte-level BPE: split by the rules, spell bytes as letters, merge by rank."""
    letters = byte_letters()
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    tokens = []
    for is_special, part in split_special(text, special):
        pieces = [part]
        for rule in [] if is_special else rules:
            pieces = [p for piece in pieces for p in split_keeping_gaps(piece, rule)]
        for piece in pieces:
            symbols = [letters[byte] for byte in piece.encode()]
            tokens += [piece] if is_special else merge_all(symbols, lambda a, b: ranks.get((a, b)))
    return tokens


def plain_sentencepiece(text: str, pieces: list[str], adds_space: bool, special: list[str]) -> list[str]:
    """SentencePiece's BPE as llama.cpp runs it: join the pair of the best score, spell the rest in bytes.

    ``pieces`` are ordered from the best score to the worst.
    """
    scores = {piece: i for i, piece in enumerate(pieces)}
    tokens = []
    for is_special, part in split_special(text, special):
        if is_special:
            tokens.append(part)
            continue
        spelled = ((" " if adds_space else "") + part).replace(" ", "\u2581")
        for symbol in merge_all(list(spelled), lambda a, b: scores.get(a + b)):
            tokens += [symbol] if symbol in scores else [f"<0x{byte:02X}>" for byte in symbol.encode()]
    return tokens
