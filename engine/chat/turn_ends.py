"""The tokens that end an assistant's turn, whatever a model's files call its eos.

Files are often silent or name the base model's eos. So such tokens are looked for by their text, as llama.cpp
does, and in what the chat template puts behind a reply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from ...grammar.chat_templates.sandbox import render_chat
from ...models.config import ModelConfig, read_token_ids

# as the vocabularies of public models spell them
_END_TEXTS: Final = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|end|>", "<end_of_turn>", "<turn|>"),
    *("</s>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "< EOT >", "[EOT]", "[EOS]"),
    *("<\uff5cend\u2581of\u2581sentence\uff5c>", "<|end\u2581of\u2581sentence|>", "<end_of_utterance>"),
    *("<|return|>", "<|call|>", "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>"),
)
# With these two in the vocabulary <|end|> ends one of several messages in a turn.
_TURN_OF_MESSAGES: Final = ("<|return|>", "<|call|>")

_REPLY: Final = "ok7x"  # found again in what the template makes of it
_PROBE: Final = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": _REPLY})


def find_turn_ends(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that end a turn.

    They are those special or added tokens of ``tokenizer`` that are known by their text, and the one with
    which its chat template closes a reply.
    """
    special = special_tokens(tokenizer)
    known = {text for text in _END_TEXTS if text in special}
    if known.issuperset(_TURN_OF_MESSAGES):
        known.discard("<|end|>")
    closing = _closing_token(tokenizer, special)
    return frozenset(special[text] for text in (known if closing is None else known | {closing}))


def eos_token_ids(
    model: ModelConfig, generation_config: Mapping[str, Any], tokenizer: Any
) -> tuple[int, ...]:
    """Ids that end an output: what the model's files and its tokenizer call eos, and what ends a turn."""
    declared = read_token_ids(generation_config, "eos_token_id", "generation_config.json")
    ids = {*model.eos_token_ids, *declared}
    if tokenizer is not None:
        ids |= find_turn_ends(tokenizer)
        if tokenizer.eos_token_id is not None:
            ids.add(tokenizer.eos_token_id)
    return tuple(sorted(token for token in ids if token < model.vocab_size))  # others are never drawn


def special_tokens(tokenizer: Any) -> Mapping[str, int]:
    """Text -> id of the tokens that are matched whole in a text."""
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids))
    return {text: index for text, index in {**tokenizer.get_added_vocab(), **named}.items() if text.strip()}


def _closing_token(tokenizer: Any, special: Mapping[str, int]) -> str | None:
    """The special token right behind a reply that the template has written, None if there is none."""
    if not special or not getattr(tokenizer, "chat_template", None):
        return None
    try:
        text = render_chat(tokenizer, _PROBE)
    except Exception:  # templates may raise anything, e.g. demand a system message
        return None
    behind = text.rpartition(_REPLY)[2].lstrip() if _REPLY in text else ""
    longest_first = sorted(special, key=len, reverse=True)
    found = re.match("|".join(map(re.escape, longest_first)), behind)
    return found[0] if found else None
