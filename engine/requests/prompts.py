"""Prompts in any of their forms, and what an engine has room for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import InvalidRequestError, RequestTooLongError, short
from ..steps.input_embeds import PLACEHOLDER, parse_embeds
from .arguments import GenerateArgs
from .encoding import TextEncoder

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("rootlet.engine")


@dataclass(frozen=True)
class Limits:
    """What the engine can hold. ``pool_tokens``: KV room of an empty pool."""

    vocab_size: int
    context_length: int
    pool_tokens: int
    hidden_size: int = 0  # of input_embeds

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt; behind it one token more fits."""
        return min(self.context_length - 1, self.pool_tokens)

    def max_new_tokens(self, prompt: int, asked: int | None) -> int:
        """The effective output limit; refuses what can never fit. The last token's KV is never needed."""
        context, pool = self.context_length, self.pool_tokens
        if prompt >= context:
            raise RequestTooLongError(
                f"The input ({prompt} tokens) is longer than the model's context length ({context} tokens)."
                " Shorten it, or build the engine with a larger context_length if the model allows it."
            )
        if prompt > pool:
            raise RequestTooLongError(
                f"The input ({prompt} tokens) does not fit into the KV pool ({pool} tokens), even alone."
                " Shorten it, or build the engine with a larger max_total_tokens or mem_fraction_static."
            )
        if asked is None:
            return min(context - prompt, pool - prompt + 1)
        if prompt + asked > context:
            raise RequestTooLongError(
                f"Requested token count exceeds the model's maximum context length of {context} tokens."
                f" You requested a total of {prompt + asked} tokens: {prompt} tokens from the input and"
                f" {asked} tokens for the completion. Reduce one of them, or pass max_new_tokens=None to"
                " fill what is left."
            )
        if prompt + asked - 1 > pool:
            raise RequestTooLongError(
                f"The request needs room for {prompt + asked - 1} tokens ({prompt} input, {asked} new), and"
                f" the whole KV pool has {pool}. Ask for fewer, or enlarge max_total_tokens or"
                " mem_fraction_static."
            )
        return asked

    def check_ids(self, ids: list[int], where: str) -> None:
        """Raise InvalidRequestError for a prompt without tokens, or with one outside the vocabulary."""
        if not ids:
            raise InvalidRequestError(f"The prompt is empty{where}: it must have at least one token.")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            bad = next(t for t in ids if not 0 <= t < self.vocab_size)
            raise InvalidRequestError(
                f"Token id {bad}{where} is outside the vocabulary [0, {self.vocab_size})."
            )


class Prompt(NamedTuple):
    """Token ids, and the vectors they stand for if the prompt was given as those."""

    ids: list[int]
    embeds: torch.Tensor | None = None

    def cut(self, limits: Limits, asked: int | None) -> Prompt:
        """The first tokens that leave room for the ``asked`` new ones, at least for one."""
        new = max(asked or 1, 1)
        room = min(limits.context_length - new, limits.pool_tokens - new + 1)
        length = len(self.ids)
        if length <= room or room < 1:  # no prompt fits: refused like any other
            return self
        logger.warning(
            "A prompt of %d tokens was cut to its first %d (allow_auto_truncate=True)", length, room
        )
        return Prompt(self.ids[:room], None if self.embeds is None else self.embeds[:room])


def read_prompts(args: GenerateArgs, encoder: TextEncoder, limits: Limits) -> tuple[list[Prompt], bool]:
    """The prompts of a call, and whether they were given as a list."""
    forms = {"prompt": args.prompt, "input_ids": args.input_ids, "input_embeds": args.input_embeds}
    given = [name for name, value in forms.items() if value is not None]
    if len(given) != 1:
        raise InvalidRequestError(
            f"Either text, input_ids or input_embeds should be provided, exactly one; got"
            f" {' and '.join(given) or 'none'}. Pass prompt='...' (or a list of strings), input_ids=[...]"
            " (or a list of lists of ints), or input_embeds (one row of numbers per token)."
        )
    if args.input_embeds is not None:
        matrices, is_batch = parse_embeds(args.input_embeds, limits.hidden_size)
        return [Prompt([PLACEHOLDER] * len(matrix), matrix) for matrix in matrices], is_batch
    if args.prompt is not None:
        texts, is_batch = _texts(args.prompt)
        ids = encoder.encode_all(texts)
    else:
        ids, is_batch = _id_lists(args.input_ids)
    for i, prompt in enumerate(ids):
        limits.check_ids(prompt, f" (prompt {i} of the batch)" if is_batch else "")
    return [Prompt(prompt) for prompt in ids], is_batch


def is_nested(ids: Any) -> bool:
    """Whether token ids are those of several prompts."""
    return isinstance(ids, (list, tuple)) and bool(ids) and isinstance(ids[0], (list, tuple))


def _texts(prompt: Any) -> tuple[list[str], bool]:
    if isinstance(prompt, str):
        return [prompt], False
    if isinstance(prompt, (list, tuple)) and all(isinstance(p, str) for p in prompt):
        return list(prompt), True
    raise InvalidRequestError(
        f"prompt must be a string or a list of strings, got {_describe(prompt)}. Token ids go into input_ids."
    )


def _id_lists(ids: Any) -> tuple[list[list[int]], bool]:
    if isinstance(ids, Mapping) and "input_ids" in ids:  # as tokenizers return them
        ids = ids["input_ids"]
    if isinstance(ids, (list, tuple)) and ids and all(isinstance(p, (list, tuple)) for p in ids):
        return [_ids(p) for p in ids], True
    return [_ids(ids)], False


def _ids(ids: Any) -> list[int]:
    if isinstance(ids, (list, tuple)) and all(type(t) is int for t in ids):
        return list(ids)
    raise InvalidRequestError(
        f"input_ids must be a list of ints or a list of such lists, got {_describe(ids)}."
    )


def _describe(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        kinds = sorted({type(v).__name__ for v in value})
        return f"a {type(value).__name__} of {' and '.join(kinds) or 'nothing'}"
    return f"{type(value).__name__}: {short(value)}"
