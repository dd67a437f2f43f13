"""Who runs a request, for handles that no engine made."""

from __future__ import annotations

from array import array
from collections.abc import Callable

from rootlet.engine.replies.bells import Bells
from rootlet.engine.replies.detokenizer import Detokenizer
from rootlet.engine.replies.growing import GrowingOutput
from rootlet.engine.replies.handle import RequestHandle
from rootlet.engine.schedule.request import Request
from rootlet.sampling.params import SamplingParams
from rootlet.sampling.rows import SamplingRow


class FakeOwner:
    """Passes aborts to ``abort``; everybody may wait."""

    is_forked = False
    pump = None

    def __init__(self, abort: Callable[[str], object] = lambda rid: None) -> None:
        self.abort = abort
        self.bells = Bells()

    def check_wait(self) -> None:
        pass


def growing_handle(owner: FakeOwner, detokenizer: Detokenizer | None = None) -> tuple[Request, RequestHandle]:
    """A streamed request of a prompt of two tokens, and its handle; it grows by appending to its tokens."""
    params = SamplingParams(max_new_tokens=99, temperature=0)
    request = Request(
        rid="r",
        token_ids=array("i", [1, 2]),
        params=params,
        max_new_tokens=99,
        stop_token_ids=frozenset(),
        sampling_row=SamplingRow(params, 0, 0, 2),
    )
    handle = RequestHandle("r", owner, is_streamed=True)
    options = {"token_text": None, "index": None}
    handle.grow(GrowingOutput(request, detokenizer, None, 1, **options))
    return request, handle
