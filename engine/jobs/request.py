"""What a line asks for, whichever form it is written in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import InvalidRequestError
from ...sampling.params import SamplingParams
from ...sampling.seeds import derive_seed
from ..chat.conversation import Conversation
from ..chat.options import ChatOptions
from .identity import LineError, LineIdentity

Prompt = str | tuple[int, ...] | Conversation
Form = Literal["simple", "chat", "completion"]


@dataclass(frozen=True)
class LineLogprobs:
    """Which log-probabilities a line wants back; the engine's arguments of the same names."""

    logprob_start_len: int = -1
    top_logprobs_num: int = 0


@dataclass(frozen=True)
class LineRequest:
    """One readable line: prompts times ``params.n`` samples, prompt-major.

    ``echo`` (completions): the answer begins with the prompt. ``model`` and ``metadata`` are echoed.
    ``chat``: what a conversation asks for besides its messages.
    """

    form: Form
    prompts: tuple[Prompt, ...]
    params: SamplingParams
    logprobs: LineLogprobs | None = None
    echo: bool = False
    model: str | None = None
    metadata: Any = None
    chat: ChatOptions = field(default_factory=ChatOptions)

    @property
    def num_samples(self) -> int:
        """How many engine requests the line becomes."""
        return len(self.prompts) * self.params.n

    def sample(self, index: int) -> tuple[Prompt, SamplingParams]:
        """Prompt and parameters of sample ``index`` (= prompt * n + i), each with n=1 and its own seed."""
        prompt, i = divmod(index, self.params.n)
        seed = self.params.seed
        if seed is not None:
            seed = derive_seed(seed, i)
        return self.prompts[prompt], dataclasses.replace(self.params, n=1, seed=seed)


@dataclass(frozen=True)
class JobLine:
    """One input line ready to run: who it is, and its ``request`` or the ``error`` that refuses it.

    ``is_openai`` chooses the shape of its output record.
    """

    identity: LineIdentity
    is_openai: bool
    request: LineRequest | None = None
    error: LineError | None = None


@dataclass(frozen=True)
class JobDefaults:
    """Sampling parameters of the whole job (only those the caller set) and the seed of the whole job."""

    sampling: Mapping[str, Any]
    seed: int

    def merge(self, form: Mapping[str, Any], line: Mapping[str, Any], identity: bytes) -> SamplingParams:
        """Parameters of one line: what its form implies, under what the job says, under what it says itself.

        A line without a seed of its own gets one drawn from the job's seed and the line's identity, so
        that its sampled answer does not depend on when, or in which run of the job, it is computed.
        """
        values = {**form, **self.sampling, **line}
        if line.get("seed") is None:
            values["seed"] = derive_seed(self.seed, int.from_bytes(identity, "little"))
        return SamplingParams.from_dict(values)


def check_prompt(name: str, value: object) -> str | tuple[int, ...]:
    """A text or a list of token ids; raises InvalidRequestError for anything else.

    Whether it is too long or empty is the engine's to say.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        return tuple(value)
    raise InvalidRequestError(f"{name} must be a string or a list of token ids, got {_short(value)}.")


def check_type(name: str, value: object, kind: type, wanted: str) -> Any:
    """Return ``value`` if it is a ``kind`` (a bool is no int); raises InvalidRequestError."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InvalidRequestError(f"{name} must be {wanted}, got {_short(value)}.")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
