"""What ends a turn of a chat, when the model's files do not say."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rootlet.engine.chat.turn_ends import find_turn_ends

DEEPSEEK = "<\uff5cend\u2581of\u2581sentence\uff5c>"
CHATML = "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{% endfor %}"


def make_tokenizer(special, template=None, plain=("a", "</s>"), added=()):
    """A vocabulary of ``plain`` pieces, ``special`` tokens and ``added`` ones that are not special."""
    vocab = {text: index for index, text in enumerate(["<unk>", *plain])}
    fast = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    fast.add_special_tokens(list(special))
    fast.add_tokens([AddedToken(text, normalized=False) for text in added])
    return PreTrainedTokenizerFast(tokenizer_object=fast, chat_template=template)


def ends(tokenizer) -> set[str]:
    return set(tokenizer.convert_ids_to_tokens(sorted(find_turn_ends(tokenizer))))


@pytest.mark.parametrize(
    ("special", "template", "want"),
    [
        # by text
        (["<|im_start|>", "<|im_end|>", "<|endoftext|>"], None, {"<|im_end|>", "<|endoftext|>"}),
        (["<|eot_id|>", "<|eom_id|>", "<|begin_of_text|>"], None, {"<|eot_id|>", "<|eom_id|>"}),
        (["<start_of_turn>", "<end_of_turn>"], None, {"<end_of_turn>"}),
        ([DEEPSEEK, "[EOT]"], None, {DEEPSEEK, "[EOT]"}),
        (["<|user|>", "<|end|>"], None, {"<|end|>"}),
        (["<|end|>", "<|return|>", "<|call|>"], None, {"<|return|>", "<|call|>"}),
        ([], None, set()),
        # by the template
        (["<|me|>", "<|fin|>"], "{% for m in messages %}{{m.content}} <|fin|>\n{% endfor %}", {"<|fin|>"}),
        (["<|u|>", "<|a|>"], "{% for m in messages %}<|{{m.role[0]}}|>{{m.content}}\n{% endfor %}", set()),
        (["<|x|>"], "{{ raise_exception('a system message first') }}", set()),
        (["<|x|>"], "{% for %}", set()),
        (["<|x|>"], "{{ messages[0].content }}<|x|>", set()),
        (["<|im_start|>", "<|im_end|>"], CHATML, {"<|im_end|>"}),
        (["<|e|>", "<|e|>2"], "{{ messages[1].content }}<|e|>2", {"<|e|>2"}),
        (["<|e|>"], "{{ messages[1].content|upper }}<|e|>", set()),
    ],
)  # fmt: skip
def test_found(special, template, want):
    assert ends(make_tokenizer(special, template)) == want


def test_an_added_token_need_not_be_special():
    assert ends(make_tokenizer([], CHATML, added=["<|im_start|>", "<|im_end|>"])) == {"<|im_end|>"}


def test_pieces_of_text_are_no_ends():
    assert ends(make_tokenizer(["<|x|>"], plain=("a", "</s>", "<EOT>"))) == set()
