"""Outputs of a request that goes on, at the cost of what their readers look at.

A snapshot is an output of the first so many tokens. What takes time for each of them (ids, text,
log-probabilities) is made of the request's own when it is read: those only ever grow, but for the end of a
request, which takes nothing away that was shown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .outputs import NO_LOGPROBS, RequestOutput, ScoredTokens, masks_of, shared_fields
from .unread import UNREAD

if TYPE_CHECKING:
    from ..schedule.request import Request
    from .detokenizer import Detokenizer, TextStream


class Snapshots:
    """Makes the snapshots of one request; a snapshot keeps its tokens, and not the request.

    Args:
        text: for the text of snapshots that are made without.
        token_text, index: as of :func:`~rootlet.engine.replies.outputs.build_output`.
    """

    def __init__(
        self,
        request: Request,
        text: GrowingText | None,
        *,
        token_text: Callable[[int], str] | None,
        index: int | None,
    ) -> None:
        self._tokens, self._first = request.token_ids, request.num_prompt_tokens
        self._scored = ScoredTokens.of(request)
        self._text = text
        self._token_text = token_text
        self._versions = request.versions
        self._masks = partial(masks_of, request) if request.sampling_row.sampling_mask else None
        self._begin: Callable[[], dict[str, Any]] | None = lambda: shared_fields(
            request, index, 0, ended=False
        )
        self._shared: dict[str, Any] = {}

    def take(self, num_tokens: int, text: str | None) -> RequestOutput:
        """The snapshot of the first ``num_tokens``, at least one. One thread at a time."""
        if self._begin is not None:  # from its first token on these stay
            self._shared, self._begin = self._begin() | {"hidden_states": None, "continuation": None}, None
            del self._shared["weights_version"]
            self._shared |= NO_LOGPROBS if self._scored is None else {}
            self._shared |= {"sampling_mask": None} if self._masks is None else {}
        output = RequestOutput.__new__(RequestOutput)
        fields = output.__dict__
        fields[UNREAD] = self
        fields["completion_tokens"] = num_tokens
        if self._text is None:
            fields["text"] = text
        if self._token_text is not None and self._scored is not None:
            # which may run a tokenizer's own code: if it raises, that is the stream's error
            fields |= self._scored.fields(num_tokens, self._token_text)
        return output

    def fill(self, fields: dict[str, Any], name: str) -> None:
        """Make field ``name``, and perhaps others, of a snapshot with these fields. Any thread may call."""
        num_tokens = fields["completion_tokens"]
        # setdefault: of two threads that read at once both get the same object
        if name == "token_ids":
            fields.setdefault(name, tuple(self._tokens[self._first : self._first + num_tokens]))
        elif name == "text":
            assert self._text is not None  # else it has a text
            fields.setdefault(name, self._text.of(num_tokens))
        elif name == "weights_version":
            fields.setdefault(name, self._versions.last(num_tokens))
        elif name == "weights_versions":
            fields.setdefault(name, self._versions.spans(num_tokens))
        elif name in self._shared:
            for each, value in self._shared.items():
                fields.setdefault(each, value)
        elif name == "sampling_mask":
            assert self._masks is not None  # else it is shared
            fields.setdefault(name, self._masks(num_tokens))
        else:
            assert self._scored is not None  # else these are shared
            for each, value in self._scored.fields(num_tokens, None).items():
                fields.setdefault(each, value)


class GrowingText:
    """The text of the first so many output tokens of a request, for a tokenizer whose text cannot fail.

    Read in order it costs what is new; any thread may read.
    """

    def __init__(self, detokenizer: Detokenizer, request: Request) -> None:
        self._detokenizer = detokenizer
        self._params = request.params
        self._tokens, self._first = request.token_ids, request.num_prompt_tokens
        self._stream: TextStream | None = None
        self._num_tokens, self._text = 0, ""  # the longest text that was read
        self._lock = threading.Lock()

    def of(self, num_tokens: int) -> str:
        """The text of the first ``num_tokens``."""
        # Taken for ever in a forked child, or by this very thread where a finalizer reads: then decode apart.
        if not self._lock.acquire(blocking=False):
            return self._read_on(self._start(), num_tokens)
        try:
            if num_tokens < self._num_tokens:
                return self._read_on(self._start(), num_tokens)
            if self._stream is None:
                self._stream = self._start()
            self._text += self._read_on(self._stream, num_tokens)
            self._num_tokens = num_tokens
            return self._text
        finally:
            self._lock.release()

    def _start(self) -> TextStream:
        return self._detokenizer.start(self._params, self._tokens[: self._first])

    def _read_on(self, stream: TextStream, num_tokens: int) -> str:
        """What the next tokens add, up to ``num_tokens``."""
        shown = stream.num_pieces
        stream.push(self._tokens[self._first + stream.num_tokens : self._first + num_tokens])
        return stream.pieces(shown, stream.num_pieces)
