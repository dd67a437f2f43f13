"""From token ids to the text a user sees: incremental decoding and stop strings.

A :class:`TextStream` belongs to one request. Tokens are pushed as they are sampled; ``text`` is
what may be shown, and it only ever grows: an incomplete character, or the possible beginning of a
stop string, is held back until the next tokens decide. The work is linear in the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .token_text import IncrementalText, PieceText, TokenPieces, WindowText

if TYPE_CHECKING:
    from ...sampling.params import SamplingParams

_PROMPT_TAIL = 8  # prompt tokens looked at to decide about the space in front of the first output token


class Detokenizer:
    """Makes text streams for one transformers tokenizer. Shared by all requests, holds no request state."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces = TokenPieces.of(tokenizer)
        self._special_ids = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}

    @property
    def never_fails(self) -> bool:
        """Whether text is looked up in a table of ours, so that no code of the model's can raise."""
        return self._pieces is not None

    def start(self, params: SamplingParams, prompt_ids: Sequence[int] = ()) -> TextStream:
        """Open the text stream of one request.

        ``prompt_ids`` are the prompt's tokens (the last few are enough): with SentencePiece
        tokenizers the output of a prompt begins with its space, a text of its own does not.

        A stop string that is exactly the text of a special token also matches that token when
        ``skip_special_tokens`` keeps it out of the text: ``stop="<|im_end|>"`` works either way.
        """
        stops = [params.stop] if isinstance(params.stop, str) else list(params.stop or ())
        hidden = {
            self._special_ids[s]: s for s in stops if s in self._special_ids and params.skip_special_tokens
        }
        return TextStream(
            self._open(params, prompt_ids[-_PROMPT_TAIL:]),
            stops=StopMatcher(stops) if stops else None,
            stop_tokens=hidden,
            trim=not params.no_stop_trim,
        )

    def decode(
        self,
        token_ids: Sequence[int],
        params: SamplingParams,
        *,
        prompt_ids: Sequence[int] = (),
        reason_token: int | None = None,
    ) -> str:
        """Decode a whole output at once: the text its stream would have ended with.

        ``token_ids`` and ``reason_token`` are what :meth:`TextStream.push` and
        :meth:`TextStream.finish` would have been given.
        """
        stream = self.start(params, prompt_ids)
        stream.push(token_ids)
        return stream.finish(reason_token)

    def _open(self, params: SamplingParams, prompt_ids: Sequence[int]) -> IncrementalText:
        skip = params.skip_special_tokens
        if self._pieces is not None:
            return PieceText(self._pieces, skip_special_tokens=skip, prompt_ids=prompt_ids)
        return WindowText(
            self._tokenizer,
            prompt_ids=prompt_ids,
            skip_special_tokens=skip,
            # transformers' Python tokenizers know this option; the others have no such spaces
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )


class TextStream:
    """The text of one request while it is generated. Made by :meth:`Detokenizer.start`.

    ::

        all text so far:  [ .... text .... | possible stop string | incomplete character ]
                            shown            held back              held back

    ``matched`` is the stop string that ended the text, or None; ``num_tokens`` is the number of
    tokens taken so far, which after a match counts only those up to the one that completed it.
    """

    def __init__(
        self, decoder: IncrementalText, *, stops: StopMatcher | None, stop_tokens: dict[int, str], trim: bool
    ) -> None:
        self.matched: str | None = None
        self.num_tokens = 0
        self._decoder = decoder
        self._stops = stops
        self._stop_tokens = stop_tokens
        self._trim = trim
        self._shown: list[str] = []  # only ever grows, so that a reader may take what it has not seen
        self._held = ""  # may be the beginning of a stop string
        self._cut: str | None = None  # the matched stop string and what its last token had after it
        self._finished = False

    @property
    def text(self) -> str:
        """The text that is safe to show: every later value begins with this one."""
        return "".join(self._shown)

    @property
    def num_pieces(self) -> int:
        """Pieces that the text has come in so far."""
        return len(self._shown)

    def pieces(self, begin: int, end: int) -> str:
        """The text of some pieces. Any thread may call, while the stream goes on."""
        return "".join(self._shown[begin:end])

    def push(self, token_ids: Sequence[int]) -> str | None:
        """Append sampled tokens and return the stop string that completed, if one did.

        Of several stop strings, the one that ends first in the text wins; at the same place, the
        first in the request's list. Tokens after the match are not taken, nor are those of later calls.
        """
        if self.matched is not None:
            return self.matched
        if self._stops is None:
            self.num_tokens += len(token_ids)
            self._shown.append(self._decoder.feed(token_ids))
            return None
        for token in token_ids:
            self.num_tokens += 1
            self.matched = self._scan(self._stops, self._decoder.feed([token])) or self._stop_tokens.get(
                token
            )
            if self.matched is not None:
                break
        return self.matched

    def finish(self, reason_token: int | None = None, *, keep_stop: bool = False) -> str:
        """Close the stream and return the final text, which begins with every text shown before.

        ``reason_token`` is the EOS or stop token that ended the request, if one did; it must not
        have been pushed. It and a matched stop string are left out, unless the request has
        ``no_stop_trim``. ``keep_stop`` keeps the matched stop string for a request which ended for
        another reason in the same step (its length). Calling this again returns the same text.
        """
        if self._finished:
            return self.text
        self._finished = True
        if self._cut is None or keep_stop:
            rest = self._decoder.feed([reason_token]) if reason_token is not None and not self._trim else ""
            self._shown += [self._held, self._cut or "", rest, self._decoder.flush()]
        return self.text

    def _scan(self, stops: StopMatcher, piece: str) -> str | None:
        """Add decoded text, keep back what a stop string may still need, return the stop that completed."""
        match = stops.feed(piece)
        text = self._held + piece
        if not self._trim:
            split = len(text)
        elif match is None:
            split = len(text) - stops.pending
        else:
            split = len(text) - (len(piece) - match[1]) - len(match[0])
        self._shown.append(text[:split])
        if match is None:
            self._held = text[split:]
            return None
        self._held, self._cut = "", text[split:] if self._trim else None
        return match[0]


class StopMatcher:
    """Finds the first stop string to complete in a text that arrives in pieces.

    One automaton per stop string (Knuth, Morris, Pratt, "Fast pattern matching in strings", 1977):
    its state is how many characters of the stop string the text ends with, so nothing is scanned
    twice and the largest state is exactly what has to be held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._tables = [(stop, _borders(stop)) for stop in stops]
        self._states = [0] * len(stops)

    @property
    def pending(self) -> int:
        """Length of the longest end of the text that is the beginning of a stop string."""
        return max(self._states)

    def feed(self, text: str) -> tuple[str, int] | None:
        """Read text; return (stop string, characters of ``text`` read up to its end) at the first match.

        Nothing may be fed after a match.
        """
        for index, char in enumerate(text, start=1):
            for which, (stop, borders) in enumerate(self._tables):
                state = self._states[which]
                while state and stop[state] != char:
                    state = borders[state]
                state += stop[state] == char
                if state == len(stop):
                    return stop, index
                self._states[which] = state
        return None


def _borders(pattern: str) -> list[int]:
    """For each length n, the longest proper prefix of ``pattern[:n]`` that is also its suffix."""
    borders = [0, 0]
    for char in pattern[1:]:
        state = borders[-1]
        while state and pattern[state] != char:
            state = borders[state]
        borders.append(state + (pattern[state] == char))
    return borders
