"""The arguments of ``generate`` and its siblings, as given, and what holds for each of their prompts."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from ...errors import InvalidRequestError, short
from ...sampling.distributions import LOGPROBS_OF
from ...sampling.limits import MAX_ID_CHARS, check_count
from ..output_kind import OutputKind
from ..schedule.request import LogprobOptions

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    import torch

    from ...sampling.custom import CustomLogitProcessor
    from ...sampling.distributions import LogprobsOf
    from ...sampling.params import SamplingParams
    from ..replies.outputs import RequestOutput

    Texts: TypeAlias = str | list[str] | None
    Tokens: TypeAlias = list[int] | list[list[int]] | Mapping[str, Any] | None
    Rids: TypeAlias = str | list[str] | None
    Flags: TypeAlias = bool | list[bool]
    Counts: TypeAlias = int | list[int] | None
    OneParams: TypeAlias = Mapping[str, Any] | SamplingParams | None
    Params: TypeAlias = OneParams | Sequence[OneParams]
    Processor: TypeAlias = CustomLogitProcessor | Callable[..., torch.Tensor] | str


class CallFields(TypedDict, total=False):
    """Arguments by name that texts and conversations share; explained at :meth:`rootlet.Engine.generate`."""

    rid: Rids
    custom_logit_processor: Processor | Sequence[Processor | None] | None


class RequestFields(CallFields, total=False):
    """Those of a prompt alone."""

    logprobs_of: LogprobsOf | Sequence[LogprobsOf | None] | None
    return_text_in_logprobs: bool
    return_sampling_mask: Flags | None
    return_hidden_states: bool | list[bool] | None
    session_params: dict[str, Any] | list[dict[str, Any]] | None
    input_embeds: torch.Tensor | np.ndarray | Sequence[Any] | None
    continue_from: RequestOutput | Sequence[RequestOutput] | None


def logprob_fields(return_logprob: Any, logprob_start_len: Any, top_logprobs_num: Any) -> dict[str, Any]:
    """What is asked for of log-probabilities, by name: in ``generate`` these may stand without theirs."""
    return {
        "return_logprob": return_logprob,
        "logprob_start_len": logprob_start_len,
        "top_logprobs_num": top_logprobs_num,
    }


@dataclass(frozen=True)
class GenerateArgs:
    """One call: the prompts, in one of three forms, and the rest by name, unread.

    ``fields``: :class:`RequestFields`, and those of log-probabilities.
    """

    prompt: Any = None
    sampling_params: Any = None
    input_ids: Any = None
    stream: Any = False
    wanted: OutputKind = OutputKind.TEXT
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def for_embedding(cls, prompt: Any, input_ids: Any, wanted: OutputKind, rid: Any) -> GenerateArgs:
        """The arguments of ``encode`` or ``classify``: a request without new tokens."""
        params = {"temperature": 0, "max_new_tokens": 0}
        fields = {"rid": rid, "return_hidden_states": False}
        return cls(prompt, params, input_ids, wanted=wanted, fields=fields)

    @property
    def input_embeds(self) -> Any:
        """Prompts as vectors."""
        return self.fields.get("input_embeds")

    @property
    def continue_from(self) -> Any:
        """Outputs to go on from, instead of prompts."""
        return self.fields.get("continue_from")

    @property
    def is_list(self) -> bool:
        """Whether several prompts, or one as token ids, were given."""
        return isinstance(self.prompt or self.input_ids or self.continue_from, (list, tuple))

    def per_prompt(self, name: str, count: int, default: Any = None) -> list[Any]:
        """The field for each of ``count`` prompts: its entries, or itself for all; None is the default."""
        value = self.fields.get(name)
        if isinstance(value, (list, tuple)):
            if len(value) != count:
                raise InvalidRequestError(f"{name} has {len(value)} entries for {count} prompts.")
            return [default if v is None else v for v in value]
        return [default if value is None else value] * count

    def flag(self, name: str) -> bool:
        """A field that is one bool for all prompts, False if left out."""
        return check_flag(name, self.fields.get(name, False))

    def rids(self, count: int) -> list[str]:
        """An id per prompt: those given, else new ones."""
        rid = self.fields.get("rid")
        if rid is None:
            return [uuid.uuid4().hex for _ in range(count)]
        rids = list(rid) if isinstance(rid, (list, tuple)) else [rid]
        if not all(isinstance(r, str) and r for r in rids):
            raise InvalidRequestError(f"rid must be a non-empty string or a list of them, got {short(rid)}.")
        check_count("The length of a rid", max(map(len, rids), default=0), MAX_ID_CHARS)
        if len(rids) != count or (self.is_list and isinstance(rid, str) and count > 1):
            raise InvalidRequestError(
                f"rid must be a list with one id per prompt ({count}), got {short(rid)}."
            )
        if len(set(rids)) != count:
            raise InvalidRequestError(f"rid must not repeat within a batch, got {short(rid)}.")
        return rids


def check_flag(name: str, value: Any) -> bool:
    """The bool ``value``; raises InvalidRequestError if it is none."""
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be a bool, got {short(value)}.")
    return value


def read_logprobs(
    wanted: Any, start: Any, top: Any, of: Any, prompt_len: int, vocab_size: int
) -> LogprobOptions | None:
    """What the four arguments about log-probabilities ask for a prompt."""
    check_flag("return_logprob", wanted)
    for name, value in (("logprob_start_len", start), ("top_logprobs_num", top)):
        if value is not None and type(value) is not int:
            raise InvalidRequestError(f"{name} must be an int, got {short(value)}.")
    if of is not None and (type(of) is not str or of not in LOGPROBS_OF):
        allowed = ", ".join(map(repr, LOGPROBS_OF))
        raise InvalidRequestError(
            f"logprobs_of must be {allowed} or None (the documented values), got {short(of)}."
        )
    if not wanted:
        if top or start not in (None, -1) or of is not None:
            raise InvalidRequestError(
                "top_logprobs_num, logprob_start_len and logprobs_of need return_logprob=True."
            )
        return None
    top = top or 0
    if not 0 <= top <= vocab_size:
        raise InvalidRequestError(f"top_logprobs_num must be in [0, {vocab_size}], got {top}.")
    if start is None or start == -1:
        return LogprobOptions(None, top, of)
    if not 0 <= start < prompt_len:
        raise InvalidRequestError(
            f"logprob_start_len must be in [0, {prompt_len}) for a prompt of {prompt_len} tokens, or -1"
            f" for none, got {start}."
        )
    return LogprobOptions(start, top, of)
