"""What a running request looks like to its caller, made where and when somebody looks.

The engine's thread does nothing for it, but for requests with stop strings: readers count the tokens that
are there and make text and outputs of them, on their own threads. What a slow one never looks at is not made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import TokenizerError, is_interrupt
from ..host.code import log_exception
from .snapshots import GrowingText, Snapshots

if TYPE_CHECKING:
    from ..schedule.request import Request
    from .detokenizer import Detokenizer, TextStream
    from .outputs import RequestOutput


def text_error(request: Request, error: BaseException) -> TokenizerError:
    """Log that the text of a request could not be made, which may run a model's own code; what to raise."""
    log_exception("The output of request %s could not be made", request.rid)
    failure = TokenizerError(f"The output of this request cannot be written as text: {error!r}.")
    failure.__cause__ = error
    return failure


class _Told(NamedTuple):
    """What the engine's thread says may be shown of a request with stop strings."""

    num_known: int = 0  # tokens, the prompt's included
    num_pieces: int = 0


class GrowingOutput:
    """Snapshots of one request that has not ended. Any thread may ask for news, one at a time makes outputs.

    Args:
        detokenizer: for the text; None without.
        stops: the text where the engine's thread makes it, because it looks for stop strings.
        interval: tokens between two snapshots.
        options: of :class:`Snapshots`.
    """

    def __init__(
        self,
        request: Request,
        detokenizer: Detokenizer | None,
        stops: TextStream | None,
        interval: int,
        **options: Any,
    ) -> None:
        self._request = request
        self._detokenizer = detokenizer
        self._stops = stops
        self._interval = interval
        self._told = _Told()
        # these stay the same objects and numbers
        self._tokens, self._first = request.token_ids, request.num_prompt_tokens
        self._max_num_tokens, self._stop_ids = request.max_num_tokens, request.stop_token_ids
        self._due = self._first + interval  # tokens at which there is news
        is_late = detokenizer is not None and stops is None and detokenizer.never_fails
        late = GrowingText(detokenizer, request) if detokenizer is not None and is_late else None
        self._snapshots = Snapshots(request, late, **options)
        self._makes_text = detokenizer is not None and late is None
        self._own: TextStream | None = None
        self._text, self._num_pieces = "", 0  # of what was shown

    def tell(self) -> None:
        """Let readers see what there is of a request with stop strings. On the engine's thread."""
        assert self._stops is not None
        self._told = _Told(len(self._tokens), self._stops.num_pieces)

    @property
    def has_news(self) -> bool:
        """Whether there are tokens enough that no snapshot has shown."""
        return self._num_known() >= self._due

    def look(self) -> RequestOutput | None:
        """The snapshot of now, None if there is no news. Raises TokenizerError if it has no text."""
        told = self._told
        num_known = self._num_known() if self._stops is None else told.num_known
        if num_known < self._due:
            return None
        num_tokens = num_known - self._first
        try:
            text = self._text_of(num_tokens, told.num_pieces) if self._makes_text else None
            output = self._snapshots.take(num_tokens, text)
        except BaseException as error:
            if is_interrupt(error):
                raise
            raise text_error(self._request, error) from error
        self._due = num_known + self._interval
        return output

    def _num_known(self) -> int:
        """Tokens that may be shown. One that ends the request is the final output's: it may be cut."""
        if self._stops is not None:
            return self._told.num_known
        count = len(self._tokens)
        if count >= self._max_num_tokens or self._tokens[count - 1] in self._stop_ids:
            return count - 1
        return count

    def _text_of(self, num_tokens: int, num_pieces: int) -> str:
        text = self._stops or self._own_text()
        if text is self._own:
            text.push(self._tokens[self._first + text.num_tokens : self._first + num_tokens])
            num_pieces = text.num_pieces
        self._text += text.pieces(self._num_pieces, num_pieces)
        self._num_pieces = num_pieces
        return self._text

    def _own_text(self) -> TextStream:
        if self._own is None:
            assert self._detokenizer is not None  # it makes the text
            self._own = self._detokenizer.start(self._request.params, self._tokens[: self._first])
        return self._own
