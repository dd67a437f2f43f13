"""The vocabulary of SmolLM2 in its GGUF file, against transformers and against the definition."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import regex

from rootlet.models.gguf_tokenizer import load_gguf_tokenizer
from rootlet.models.loader.gguf_file import read_gguf

from .vocabularies import RULES, plain_bpe

TEXTS = [
    "Hello world",
    "",
    " ",
    "   three leading spaces and three trailing   ",
    "tabs\tand\nnewlines\r\n\n\n  indented\n",
    "def f(x):\n    return x ** 2  # squared\n\n\nclass A:\n\tpass\n",
    '{"a": [1, 2.5, -3e10], "b": null}',
    "1234567890 12 345 v2.0",
    "don't I'LL we've he's 'quoted' \u2019s",
    "naïve café Straße ÅNGSTRÖM e\u0301 combining",
    "漢字とひらがな 한국어 العربية हिन्दी עברית ไทย",
    "🎉👩\u200d👩\u200d👧🏳️\u200d🌈 emoji\u00a0nbsp\u3000ideographic",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a<|endoftext|>b<|endoftext|>",
    "<filename>x.py<|im_start|>",
    "\x00\x01\x7f\ufffd\U0010ffff",
]
NUMBERS_AFTER_SPACES = ["a  123", "\n\n    0  1", "½ ² Ⅳ  ٣"]


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf):
    return load_gguf_tokenizer(smollm2_gguf)


@pytest.fixture(scope="module")
def smollm2_of_transformers(smollm2_gguf):
    from transformers import PreTrainedTokenizerFast  # AutoTokenizer takes several times as long to get there

    return PreTrainedTokenizerFast.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)


def test_smollm2_agrees_with_transformers(smollm2, smollm2_of_transformers):
    for text in [*TEXTS, Path(gguf.__file__).with_name("lazy.py").read_text(encoding="utf-8")]:
        text = regex.sub(r"(?<=\s)\s(?=\p{N})", "", text)  # see the next test
        ids = smollm2.encode(text, add_special_tokens=False)
        assert ids == smollm2_of_transformers.encode(text, add_special_tokens=False), text[:40]
        for skip in (False, True):
            options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": False}
            assert smollm2.decode(ids, **options) == smollm2_of_transformers.decode(ids, **options)
    chat = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]
    for add in (False, True):
        ours, theirs = (
            t.apply_chat_template(chat, add_generation_prompt=add, tokenize=False)
            for t in (smollm2, smollm2_of_transformers)
        )
        assert ours == theirs


def test_smollm2_by_the_definition(smollm2, smollm2_gguf):
    """Also where transformers is wrong: without cutting numbers off, "a  1" loses its token of two spaces."""
    metadata = read_gguf(smollm2_gguf).metadata
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types) if kind == 3]
    for text in [*TEXTS, *NUMBERS_AFTER_SPACES]:
        expected = plain_bpe(text, RULES["smollm"], metadata["tokenizer.ggml.merges"], special)
        assert smollm2.convert_ids_to_tokens(smollm2.encode(text)) == expected, text
    assert smollm2.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert sorted(smollm2.all_special_ids) == list(range(17))
    assert (smollm2.bos_token, smollm2.eos_token) == ("<|im_start|>", "<|im_end|>")
