"""Log-likelihoods of continuations: what choices, evaluation and reinforcement learning ask of a model.

The prompt of many continuations is computed once, through the prefix cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InvalidRequestError, short
from ..replies.outputs import RequestOutput
from .encoding import TextEncoder

SCORING_PARAMS = {"temperature": 0, "max_new_tokens": 0}
"""The token that is sampled all the same is nobody's."""


@dataclass(frozen=True)
class ScoreOutput:
    """How likely the model finds one continuation.

    Attributes:
        logprob: natural log of its probability after the prompt, the sum of ``token_logprobs``.
        token_ids: its tokens.
        token_logprobs: one per token, each given everything before it.
        cached_tokens: prompt tokens that came from the prefix cache.
    """

    logprob: float
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    cached_tokens: int

    @property
    def num_tokens(self) -> int:
        """Length of the continuation in tokens; ``logprob / num_tokens`` compares different lengths."""
        return len(self.token_ids)


class ScorePlan:
    """The requests that score ``continuations`` after ``prompts``, and how their outputs are read.

    One prompt takes a list of continuations, a list of prompts a list of such lists. A text is split where
    the tokens of prompt + continuation first differ from those of the prompt: a tokenizer may merge across
    the border, and the model has to be asked for tokens as it saw them in training.

    Raises InvalidRequestError.
    """

    def __init__(self, encoder: TextEncoder, prompts: Any, continuations: Any) -> None:
        self._is_single = isinstance(prompts, str) or _is_ids(prompts)
        if self._is_single:
            prompts, continuations = [prompts], [continuations]
        if not isinstance(prompts, (list, tuple)) or not isinstance(continuations, (list, tuple)):
            raise InvalidRequestError(
                "score() takes one prompt and a list of continuations, or a list of prompts and a list of"
                f" such lists; got {type(prompts).__name__} and {type(continuations).__name__}."
            )
        if len(prompts) != len(continuations):
            raise InvalidRequestError(
                f"{len(prompts)} prompts need as many lists of continuations, got {len(continuations)}."
            )
        self.input_ids: list[list[int]] = []
        self.starts: list[int] = []
        self._counts: list[int] = []
        for prompt, endings in zip(prompts, continuations):
            if isinstance(endings, str) or not isinstance(endings, (list, tuple)) or _is_ids(endings):
                raise InvalidRequestError(
                    f"The continuations of a prompt must be a list, got {short(endings)}."
                )
            self._counts.append(len(endings))
            read = _Reader(encoder, prompt)
            for ending in endings:
                context, whole = read.with_ending(ending)
                start = _common_length(context, whole)
                _check(prompt, ending, start, len(whole))
                self.input_ids.append(whole)
                self.starts.append(start)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``generate``; scored are the tokens of the continuations."""
        return {
            "input_ids": self.input_ids,
            "sampling_params": SCORING_PARAMS,
            "return_logprob": True,
            "logprob_start_len": self.starts,
            "return_hidden_states": False,
        }

    def collect(self, outputs: Sequence[RequestOutput]) -> list[ScoreOutput] | list[list[ScoreOutput]]:
        """The scores, in the shape of the continuations."""
        scores = [_score(*item) for item in zip(self.input_ids, self.starts, outputs)]
        groups, begin = [], 0
        for count in self._counts:
            groups.append(scores[begin : begin + count])
            begin += count
        return groups[0] if self._is_single else groups


def _score(ids: list[int], start: int, output: RequestOutput) -> ScoreOutput:
    triples = output.input_token_logprobs or ()
    logprobs = tuple(logprob for logprob, _, _ in triples if logprob is not None)  # each has tokens before it
    return ScoreOutput(sum(logprobs), tuple(ids[start:]), logprobs, output.cached_tokens)


class _Reader:
    """Token ids of one prompt, and of the prompt and a continuation together."""

    def __init__(self, encoder: TextEncoder, prompt: Any) -> None:
        self._encoder = encoder
        self._prompt = prompt
        self._context: list[int] | None = None

    def with_ending(self, ending: Any) -> tuple[list[int], list[int]]:
        """The tokens of both; raises InvalidRequestError unless both are texts or both are ids."""
        prompt = self._prompt
        if _is_ids(prompt) and _is_ids(ending):
            return list(prompt), [*prompt, *ending]
        if not (isinstance(prompt, str) and isinstance(ending, str)):
            raise InvalidRequestError(
                "A prompt and its continuations must all be texts or all lists of token ids,"
                f" got {short(prompt)} and {short(ending)}."
            )
        if self._context is None:
            self._context = self._encoder.encode(prompt)
        return self._context, self._encoder.encode(prompt + ending)


def _common_length(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _check(prompt: Any, ending: Any, start: int, num_tokens: int) -> None:
    if start == 0:
        raise InvalidRequestError(
            f"Nothing comes before the continuation {short(ending)}: the prompt {short(prompt)} must give at"
            " least one token to predict from, the tokenizer's begin-of-sequence token for instance."
        )
    if start == num_tokens:
        raise InvalidRequestError(
            f"The continuation {short(ending)} adds no token to the prompt {short(prompt)}."
        )


def _is_ids(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(type(item) is int for item in value)
