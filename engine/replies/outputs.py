"""What callers get back: frozen results that also answer like the documented dictionaries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

# (logprob or None, token id, text or None), the documented triple
LogprobTriple = tuple[float | None, int, str | None]

_LOGPROB_FIELDS = (
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
        """One with all these fields, in a quarter of the time of ``__init__``: for a token of a stream."""
        output = cls.__new__(cls)
        output.__dict__.update(fields)
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

    def _more_meta(self) -> dict[str, object]:
        more: dict[str, object] = {"completion_tokens": self.completion_tokens}
        more["weights_versions"] = [span._asdict() for span in self.weights_versions]
        logprobs = {name: getattr(self, name) for name in _LOGPROB_FIELDS}
        more |= {name: value for name, value in logprobs.items() if value is not None}
        if self.sampling_mask is not None:
            more["sampling_mask"] = self.sampling_mask
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


def build_output(
    request: Request,
    text: str | None,
    *,
    num_tokens: int | None = None,
    token_text: Callable[[int], str] | None,
    index: int | None,
) -> RequestOutput:
    """The final output of ``request``, or with ``num_tokens`` how it was when it had so many.

    ``token_text`` adds the text of tokens to log-probabilities when given.
    """
    ended = num_tokens is None
    first = request.num_prompt_tokens
    tokens = tuple(
        request.token_ids[first:] if num_tokens is None else request.token_ids[first : first + num_tokens]
    )
    fields = shared_fields(request, index, len(tokens), ended=ended)
    fields["weights_versions"] = request.versions.spans(len(tokens))
    fields["text"], fields["token_ids"], fields["completion_tokens"] = text, tokens, len(tokens)
    if ended:
        fields["continuation"] = Continuation.of(request, with_token_text=token_text is not None)
    if ended and request.return_hidden_states:
        fields["hidden_states"] = assembled(request.collected.hidden_states, request.num_prompt_tokens)
    if request.sampling_row.sampling_mask:
        kept = request.collected.sampling_masks if request.sampling_row.masked else [b""] * len(tokens)
        fields["sampling_mask"] = SamplingMasks(kept[: len(tokens)])
    if request.logprobs is not None:
        scored = list(request.collected.prompt_logprobs)
        drawn, ranked = _drawn(
            request.collected.output_logprobs[:num_tokens], request.logprobs.top, token_text
        )
        if request.logprobs.prompt_start == 0:  # nothing predicts the first token
            scored = [_first_token(request), *scored]
        fields["input_token_logprobs"] = [_triple(t, token_text) for t in scored]
        fields["output_token_logprobs"] = drawn
        if request.logprobs.top:
            fields["input_top_logprobs"] = [_top(t, token_text) for t in scored]
            fields["output_top_logprobs"] = ranked
    return RequestOutput.of(fields)


def _first_token(request: Request) -> TokenLogprob:
    return TokenLogprob(None, request.token_ids[0])


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
