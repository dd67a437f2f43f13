"""What callers get back: frozen results that also answer like the documented dictionaries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Any

from ..schedule.logprobs import PackedLogprob, TokenLogprob, unpack_logprobs
from ..schedule.request import Request
from ..schedule.timing import RequestTiming
from ..schedule.versions import Label, WeightSpan
from ..steps.hidden_states import assembled
from .continuation import Continuation
from .sampling_masks import SamplingMasks
from .unread import UNREAD, made_when_read

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

# (logprob or None, token id, text or None), the documented triple
LogprobTriple = tuple[float | None, int, str | None]

LOGPROB_FIELDS = (
    "input_token_logprobs",
    "output_token_logprobs",
    "input_top_logprobs",
    "output_top_logprobs",
)


@dataclass(frozen=True, kw_only=True)
class DocumentedOutput(Mapping[str, object]):
    """A result that reads like the documented dictionary: content, ``meta_info``; in a batch ``index``.

    Attributes:
        rid: id of the request.
        finish_reason: None while running; else ``{"type": "stop"|"length"|"abort", ...}``.
        prompt_tokens: tokens of the prompt.
        cached_tokens: prompt tokens that came from the prefix cache.
        index: position in a batch (``prompt * n + sample``), None for a single request.
        weights_version: that of the weights which drew the last token.
        timing: where the time went, in the final output.
    """

    rid: str
    finish_reason: dict[str, object] | None
    prompt_tokens: int
    cached_tokens: int
    index: int | None = None
    weights_version: Label = 0
    timing: RequestTiming | None = field(default=None, compare=False)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """One that keeps this dictionary as its fields, in a tenth of the time of ``__init__``."""
        output = cls.__new__(cls)
        object.__setattr__(output, "__dict__", fields)
        return output

    @property
    @abstractmethod
    def _content_key(self) -> str:
        """Under which key the content stands."""

    @cached_property
    def meta_info(self) -> dict[str, object]:
        """The documented ``meta_info`` dictionary."""
        meta = {
            "id": self.rid,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "weights_version": self.weights_version,
            **self._more_meta(),
        }
        return meta if self.timing is None else meta | {"timing": self.timing.as_dict()}

    def _more_meta(self) -> dict[str, object]:
        """What ``meta_info`` has besides."""
        return {}

    def as_dict(self) -> dict[str, object]:
        """A plain dictionary in the documented shape, ready for ``json.dumps``.

        But for hidden states and sampling masks, which are tensors and arrays.
        """
        return dict(self)

    def __iter__(self) -> Iterator[str]:
        yield self._content_key
        yield "meta_info"
        if self.index is not None:
            yield "index"

    def __len__(self) -> int:
        return sum(1 for _ in self)


@made_when_read
@dataclass(frozen=True, kw_only=True)
class RequestOutput(DocumentedOutput):
    """The output of one request so far; final when ``finish_reason`` is not None.

    Reads like the documented dictionary too: ``out["text"]`` (or ``out["token_ids"]`` without a tokenizer),
    ``out["meta_info"]["prompt_tokens"]`` and, in a batch, ``out["index"]``.

    Attributes:
        rid, finish_reason, prompt_tokens, cached_tokens, index, weights_version, timing: as in
            :class:`DocumentedOutput`.
        weights_versions: which version drew which tokens, in turn; one unless the weights were updated
            meanwhile.
        text: text generated so far (cumulative), or None without a tokenizer.
        token_ids: generated token ids so far, stop token included.
        completion_tokens: how many those are.
        input_token_logprobs, output_token_logprobs, input_top_logprobs, output_top_logprobs: what was asked
            for by ``return_logprob`` and ``top_logprobs_num``, else None; per position a (log-probability,
            token id, text or None), or a list of those of the likeliest tokens.
        sampling_mask: with ``return_sampling_mask``, else None: per output token the ids that it was drawn
            among, see :class:`~rootlet.engine.replies.sampling_masks.SamplingMasks`.
        hidden_states: in the final output of a request with ``return_hidden_states``: states after the final
            norm, on the CPU, in the model's dtype. Entry 0 [prompt_tokens, H] holds those of the prompt,
            entry i [H] that of generated token i - 1; so there is one entry per generated token, the one it
            was drawn from. A request aborted before its first token has entry 0 as far as it got, or none.

    Outputs are compared without ``hidden_states`` and ``timing``. One that was aborted, or ended by its
    length, also keeps what ``continue_from`` needs of its request (``continuation``); no dictionary does.
    """

    text: str | None
    token_ids: tuple[int, ...]
    completion_tokens: int
    weights_versions: tuple[WeightSpan, ...] = ()
    input_token_logprobs: list[LogprobTriple] | None = None
    output_token_logprobs: list[LogprobTriple] | None = None
    input_top_logprobs: list[list[LogprobTriple] | None] | None = None
    output_top_logprobs: list[list[LogprobTriple] | None] | None = None
    sampling_mask: SamplingMasks | None = None
    hidden_states: list[torch.Tensor] | None = field(default=None, repr=False, compare=False)
    continuation: Continuation | None = field(default=None, init=False, repr=False, compare=False)

    def at(self, index: int | None) -> RequestOutput:
        """The same output at another position in a batch."""
        return self if self.index == index else RequestOutput.of({**self.__dict__, "index": index})

    def __getstate__(self) -> dict[str, Any]:
        """All fields, made or not: a copy needs nothing of the engine's."""
        for each in fields(self):
            getattr(self, each.name)
        return {name: value for name, value in self.__dict__.items() if name != UNREAD}

    def _more_meta(self) -> dict[str, object]:
        more: dict[str, object] = {"completion_tokens": self.completion_tokens}
        more["weights_versions"] = [span._asdict() for span in self.weights_versions]
        for name in (*LOGPROB_FIELDS, "sampling_mask"):
            value = getattr(self, name)
            if value is not None:
                more[name] = value
        return more if self.hidden_states is None else more | {"hidden_states": self.hidden_states}

    @property
    def _content_key(self) -> str:
        return "token_ids" if self.text is None else "text"

    def __getitem__(self, key: str) -> object:
        if key == "token_ids":
            return list(self.token_ids)
        if key in ("text", "meta_info", "index") and getattr(self, key) is not None:
            return getattr(self, key)
        raise KeyError(key)


Outputs = RequestOutput | list[RequestOutput]

NO_LOGPROBS = dict.fromkeys(LOGPROB_FIELDS)


def shared_fields(request: Request, index: int | None, num_tokens: int, *, ended: bool) -> dict[str, Any]:
    """The fields of :class:`DocumentedOutput` as ``request`` stands, with so many tokens of output; not
    ``ended``: as it stood before."""
    reason = request.finish_reason if ended else None
    return {
        "rid": request.rid,
        "finish_reason": None if reason is None else reason.as_dict(),
        "prompt_tokens": request.num_prompt_tokens,
        "cached_tokens": request.num_cached_tokens,
        "index": index,
        "weights_version": request.versions.last(num_tokens),
        "timing": request.stamps.timing() if ended else None,
    }


def masks_of(request: Request, num_tokens: int) -> SamplingMasks | None:
    """What the first ``num_tokens`` were drawn among, if the request asks for it."""
    row = request.sampling_row
    if not row.sampling_mask:
        return None
    kept = request.collected.sampling_masks[:num_tokens] if row.masked else [b""] * num_tokens
    return SamplingMasks(kept)


def build_output(
    request: Request,
    text: str | None,
    *,
    token_text: Callable[[int], str] | None,
    index: int | None,
) -> RequestOutput:
    """The final output of ``request``. ``token_text``, when given, adds texts to log-probabilities."""
    count = request.num_output_tokens
    fields = shared_fields(request, index, count, ended=True)
    fields["weights_versions"] = request.versions.spans(count)
    fields["text"], fields["token_ids"] = text, tuple(request.output_ids)
    fields["completion_tokens"] = count
    fields["continuation"] = Continuation.of(request, with_token_text=token_text is not None)
    states, wants_states = request.collected.hidden_states, request.return_hidden_states
    fields["hidden_states"] = assembled(states, request.num_prompt_tokens) if wants_states else None
    fields["sampling_mask"] = masks_of(request, count)
    logprobs = ScoredTokens.of(request)
    fields |= NO_LOGPROBS if logprobs is None else logprobs.fields(None, token_text)
    return RequestOutput.of(fields)


@dataclass(frozen=True)
class ScoredTokens:
    """The log-probabilities of a request, as far as they are known.

    Attributes:
        first: the prompt's first token if it is to be listed, which nothing predicts.
        prompt, drawn: of tokens of the prompt and of the output; the request's own lists.
        num_top: alternatives of each token.
    """

    first: int | None
    prompt: list[TokenLogprob]
    drawn: list[PackedLogprob]
    num_top: int

    @classmethod
    def of(cls, request: Request) -> Self | None:
        """Those of ``request``, None if it wants none."""
        if request.logprobs is None:
            return None
        first = request.token_ids[0] if request.logprobs.prompt_start == 0 else None
        collected = request.collected
        return cls(first, collected.prompt_logprobs, collected.output_logprobs, request.logprobs.top)

    def fields(self, num_tokens: int | None, token_text: Callable[[int], str] | None) -> dict[str, Any]:
        """The fields of an output that has so many tokens; None: all that there are."""
        drawn, ranked = _drawn(self.drawn[:num_tokens], self.num_top, token_text)
        scored = list(self.prompt)
        if self.first is not None:
            scored = [TokenLogprob(None, self.first), *scored]
        fields: dict[str, Any] = dict(NO_LOGPROBS)
        fields["input_token_logprobs"] = [_triple(t, token_text) for t in scored]
        fields["output_token_logprobs"] = drawn
        if self.num_top:
            fields["input_top_logprobs"] = [_top(t, token_text) for t in scored]
            fields["output_top_logprobs"] = ranked
        return fields


def _drawn(
    packed: Sequence[PackedLogprob], num_top: int, token_text: Callable[[int], str] | None
) -> tuple[list[LogprobTriple], list[list[LogprobTriple] | None]]:
    """Of drawn tokens: their own triples, and those of the ``num_top`` alternatives of each."""
    values, ids = unpack_logprobs(packed)
    texts = map(token_text, ids) if token_text else repeat(None)
    triples: list[LogprobTriple] = [*zip(values, ids, texts)]
    width = 1 + num_top
    return triples[::width], [triples[i + 1 : i + width] for i in range(0, len(triples), width)]


def _triple(token: TokenLogprob, token_text: Callable[[int], str] | None) -> LogprobTriple:
    return (token.logprob, token.token_id, token_text(token.token_id) if token_text else None)


def _top(token: TokenLogprob, token_text: Callable[[int], str] | None) -> list[LogprobTriple] | None:
    if token.top is None:
        return None
    return [(value, i, token_text(i) if token_text else None) for value, i in token.top]
