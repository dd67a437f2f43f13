"""What a running request looks like to its caller, made where and when somebody looks.

The engine's thread does nothing for it, but for requests with stop strings: readers count the tokens that
are there and make text and outputs of them, on their own threads. What a slow one never looks at is not made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ...errors import TokenizerError, is_interrupt
from ..host.code import log_exception
from .outputs import DocumentedOutput

if TYPE_CHECKING:
    from ..schedule.request import Request
    from .detokenizer import Detokenizer, TextStream


def text_error(request: Request, error: BaseException) -> TokenizerError:
    """Log that the text of a request could not be made, which may run a model's own code; what to raise."""
    log_exception("The output of request %s could not be made", request.rid)
    failure = TokenizerError(f"The output of this request cannot be written as text: {error!r}.")
    failure.__cause__ = error
    return failure


class _Told(NamedTuple):
    """What the engine's thread says may be shown of a request with stop strings."""

    num_tokens: int = 0
    num_pieces: int = 0


class GrowingOutput:
    """Snapshots of one request that has not ended. Any thread may ask for news, one at a time makes outputs.

    Args:
        build: makes an output of the request, a text and ``num_tokens``.
        detokenizer: for the text; None without.
        stops: the text where the engine's thread makes it, because it looks for stop strings.
        interval: tokens between two snapshots.
    """

    def __init__(
        self,
        request: Request,
        build: Callable[..., DocumentedOutput],
        detokenizer: Detokenizer | None,
        stops: TextStream | None,
        interval: int,
    ) -> None:
        self._request = request
        self._build = build
        self._detokenizer = detokenizer
        self._stops = stops
        self._interval = interval
        self._told = _Told()
        self._own: TextStream | None = None
        self._text = ""
        self._num_tokens = self._num_pieces = 0  # of what was shown

    def tell(self) -> None:
        """Let readers see what there is of a request with stop strings. On the engine's thread."""
        assert self._stops is not None
        self._told = _Told(self._request.num_output_tokens, self._stops.num_pieces)

    @property
    def has_news(self) -> bool:
        """Whether there are tokens enough that no snapshot has shown."""
        return self._num_there() - self._num_tokens >= self._interval

    def output(self) -> DocumentedOutput:
        """The snapshot of now. Raises TokenizerError if it has no text."""
        told = self._told
        num_tokens = self._num_there() if self._stops is None else told.num_tokens
        try:
            text = None if self._detokenizer is None else self._text_of(num_tokens, told.num_pieces)
            output = self._build(self._request, text, num_tokens=num_tokens)
        except BaseException as error:
            if is_interrupt(error):
                raise
            raise text_error(self._request, error) from error
        self._num_tokens = num_tokens
        return output

    def _num_there(self) -> int:
        """Output tokens that may be shown. One that ends the request is the final output's: it may be cut."""
        if self._stops is not None:
            return self._told.num_tokens
        request = self._request
        count = len(request.token_ids)
        if count >= request.max_num_tokens or request.token_ids[count - 1] in request.stop_token_ids:
            count -= 1
        return count - request.num_prompt_tokens

    def _text_of(self, num_tokens: int, num_pieces: int) -> str:
        text = self._stops or self._own_text()
        if text is self._own:
            first = self._request.num_prompt_tokens
            text.push(self._request.token_ids[first + text.num_tokens : first + num_tokens])
            num_pieces = text.num_pieces
        self._text += text.pieces(self._num_pieces, num_pieces)
        self._num_pieces = num_pieces
        return self._text

    def _own_text(self) -> TextStream:
        if self._own is None:
            request = self._request
            assert self._detokenizer is not None  # it makes the text
            self._own = self._detokenizer.start(
                request.params, request.token_ids[: request.num_prompt_tokens]
            )
        return self._own
