"""What a running request looks like to its caller, made where and when somebody looks.

The engine's thread only counts tokens; a reader makes text and outputs of them, on its own thread. What a
slow reader never looks at is never made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...errors import TokenizerError
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


class GrowingOutput:
    """Snapshots of one request that has not ended. One thread at a time may make them.

    Args:
        build: ``outputs.build_output`` or one like it, with what is the same for all outputs of a request.
        detokenizer: for the text; None without.
        stops: the text where the engine's thread makes it, because it looks for stop strings.
    """

    def __init__(
        self,
        request: Request,
        build: Callable[..., DocumentedOutput],
        detokenizer: Detokenizer | None,
        stops: TextStream | None,
    ) -> None:
        self._request = request
        self._build = build
        self._detokenizer = detokenizer
        self._stops = stops
        self._own: TextStream | None = None
        self._num_pieces = 0  # read so far
        self._joined = ""

    def at(self, weights_version: int) -> Callable[[], DocumentedOutput]:
        """The snapshot of now, made when what is returned is called: later ones after earlier ones."""
        num_tokens = self._request.num_output_tokens
        num_pieces = 0 if self._stops is None else self._stops.num_pieces
        return lambda: self._make(num_tokens, num_pieces, weights_version)

    def _make(self, num_tokens: int, num_pieces: int, weights_version: int) -> DocumentedOutput:
        try:
            text = None if self._detokenizer is None else self._text_at(num_tokens, num_pieces)
            return self._build(self._request, text, num_tokens=num_tokens, weights_version=weights_version)
        except Exception as error:
            raise text_error(self._request, error) from error

    def _text_at(self, num_tokens: int, num_pieces: int) -> str:
        text = self._stops or self._own_text()
        if text is self._own:
            first = self._request.num_prompt_tokens
            text.push(self._request.token_ids[first + text.num_tokens : first + num_tokens])
            num_pieces = text.num_pieces
        self._joined += text.pieces(self._num_pieces, num_pieces)
        self._num_pieces = num_pieces
        return self._joined

    def _own_text(self) -> TextStream:
        if self._own is None:
            request = self._request
            assert self._detokenizer is not None  # it makes the text
            self._own = self._detokenizer.start(
                request.params, request.token_ids[: request.num_prompt_tokens]
            )
        return self._own
