"""The engine without threads: one step of scheduling, running, committing and telling the callers.

    schedule -> launch -> (next schedule -> launch) -> wait -> commit -> text -> deliver

With ``overlap`` a step is committed only after the following one was launched, so that the device works
while the host catches up. Nothing here knows about threads, event loops or progress bars: whoever owns
the core calls :meth:`EngineCore.step`, and everything happens in that call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..errors import InvalidRequestError, is_interrupt
from .host.code import call_host
from .replies.growing import GrowingOutput, text_error
from .replies.outputs import DocumentedOutput, build_output
from .schedule.constraint import RequestConstraint
from .schedule.request import FinishReason, Request, RequestStatus

if TYPE_CHECKING:
    from ..grammar.compiler import Compilation
    from .replies.detokenizer import Detokenizer, TextStream
    from .requests.factory import Submission
    from .schedule.batch import Batch, StepResult
    from .schedule.scheduler import Scheduler


class Launched(Protocol):
    """A step under way, as the runner returns it."""

    def draw(self) -> None:
        """Draw the tokens, if that had to wait for those of the step ahead; those are committed now."""

    def wait(self) -> StepResult:
        """Block until the results are on the host."""


class Runner(Protocol):
    """What the core needs of a runner; tests bring their own."""

    def launch(self, batch: Batch) -> Launched:
        """Start computing ``batch``."""


class Listener(Protocol):
    """Who waits for a request (a :class:`RequestHandle`)."""

    def grow(self, growing: GrowingOutput) -> None:
        """The request begins; there is where to look at it until it ends."""

    def deliver(self, output: DocumentedOutput) -> None:
        """Take the final output."""

    def fail(self, error: BaseException) -> None:
        """The request ended by an error."""


@dataclass
class _Tracked:
    submission: Submission
    listener: Listener
    text: TextStream | None = None  # only when stop strings are looked for
    growing: GrowingOutput | None = None  # only when somebody watches


class _InFlight(NamedTuple):
    """A launched step, and whose it is."""

    batch: Batch
    step: Launched


class EngineCore:
    """Owns the scheduler, the runner and the text streams. Single-threaded.

    Args:
        scheduler, runner: the two halves of a step.
        detokenizer: None when there is no tokenizer; outputs then carry token ids only.
        overlap: commit each step after launching the next.
        stream_interval: tokens between two snapshots of a stream.
        token_text: text of one token id, for log-probabilities with text.
        build_output: what a request looks like to its caller.
        after_step: called after every step that ran something, to watch.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        *,
        detokenizer: Detokenizer | None = None,
        overlap: bool = False,
        stream_interval: int = 1,
        token_text: Callable[[int], str] | None = None,
        build_output: Callable[..., DocumentedOutput] = build_output,
        after_step: Callable[[EngineCore], None] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.weights_version = 0
        self._detokenizer = detokenizer
        self._overlap = overlap
        self._stream_interval = stream_interval
        self._token_text = token_text
        self._build_output = build_output
        self._after_step = after_step
        self._in_flight: _InFlight | None = None
        self._tracked: dict[str, _Tracked] = {}
        self._compiling: dict[str, Compilation] = {}

    # ---- requests ----------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """True while :meth:`step` has something to do, which requests with no grammar yet are not."""
        if self._in_flight is not None or self.scheduler.has_work:
            return True
        return any(grammar.done() for grammar in self._compiling.values())

    @property
    def is_idle(self) -> bool:
        """True while there is no request of any kind, and no step under way."""
        return self._in_flight is None and not self._tracked

    def wait_for_grammars(self) -> None:
        """Block until a grammar is compiled, if that is all that requests wait for."""
        if not self.has_work and self._compiling:
            wait(self._compiling.values(), return_when=FIRST_COMPLETED)

    def add(self, submission: Submission, listener: Listener) -> None:
        """Take a request; ``listener`` hears about it from :meth:`step`."""
        request = submission.request
        if request.rid in self._tracked:
            listener.fail(InvalidRequestError(f"A request with rid {request.rid!r} is still running."))
            if submission.grammar is not None:
                submission.grammar.release()
            return
        grammar = submission.grammar
        if grammar is not None and grammar.done():
            error = grammar.exception()
            if error is not None:
                listener.fail(error)
                return
            request.constraint = RequestConstraint(grammar.result())
        elif grammar is not None:
            request.status = RequestStatus.COMPILING
            self._compiling[request.rid] = grammar
        detokenizer = self._detokenizer if request.params.stop else None
        request.is_watched, request.is_streamed = detokenizer is not None, submission.stream
        tracked = self._tracked[request.rid] = _Tracked(submission, listener)
        self.scheduler.add(request)
        if detokenizer is not None:
            with self._only(request):
                tracked.text = detokenizer.start(request.params, request.token_ids)
        if submission.stream:
            tracked.growing = GrowingOutput(
                request,
                self._detokenizer,
                tracked.text,
                self._stream_interval,
                **self._output_options(submission),
            )
            listener.grow(tracked.growing)

    def abort(self, rid: str, message: str = "Aborted by the caller.") -> None:
        """End a request with what it has. No-op when it is unknown or finished."""
        grammar = self._compiling.pop(rid, None)
        if grammar is not None:
            grammar.release()
        if rid in self._tracked:
            request = self._tracked[rid].submission.request
            self.scheduler.abort(request, message)
            with self._only(request):
                self._finish(rid)

    def _take_grammars(self) -> None:
        """Let requests whose grammars are compiled go on, and end those whose grammars are refused."""
        for rid in [rid for rid, grammar in self._compiling.items() if grammar.done()]:
            grammar = self._compiling.pop(rid)
            request = self._tracked[rid].submission.request
            error = grammar.exception()
            if error is None:
                request.constraint = RequestConstraint(grammar.result())
                self.scheduler.make_ready(request)
            else:
                self._fail(request, error)

    def fail_all(self, error: BaseException) -> None:
        """End every request with ``error``; the core is not usable afterwards."""
        tracked, self._tracked = self._tracked, {}
        self._compiling = {}
        self._in_flight = None
        for item in tracked.values():
            call_host("A listener", item.listener.fail, error)  # the others are told all the same

    # ---- one step ----------------------------------------------------------------------------------

    def step(self) -> bool:
        """Run one step. Returns whether there is more to do."""
        if self._compiling:
            self._take_grammars()
        if self._in_flight is not None and self.scheduler.awaits_verdicts:
            ahead, self._in_flight = self._in_flight, None
            self._commit(ahead)
        batch = self.scheduler.schedule()
        due = None if batch is None else _InFlight(batch, self.runner.launch(batch))
        if self._overlap:
            due, self._in_flight = self._in_flight, due
        elif due is not None:
            due.step.draw()
        if due is not None:
            self._commit(due)
        elif self._in_flight is not None:
            self._in_flight.step.draw()
        if self._after_step is not None and batch is not None:
            call_host("What watches steps", self._after_step, self)
        return self.has_work

    def _commit(self, due: _InFlight) -> None:
        batch, result = due.batch, due.step.wait()
        verdict = self.scheduler.verify(batch, result)
        for index, error in result.failures.items():
            if index not in verdict.rejected:
                self._fail(batch.sampling_requests[index], error)
        noteworthy = self.scheduler.commit(batch, result, verdict)
        if self._in_flight is not None:
            self._in_flight.step.draw()  # before the text: the device may be waiting for it
        for request in noteworthy:
            with self._only(request):
                self._tell(request, self._tracked[request.rid])

    def _fail(self, request: Request, error: BaseException) -> None:
        """End one request by an error. No-op when its listener heard of the end already."""
        tracked = self._tracked.get(request.rid)
        if tracked is not None and tracked.submission.request is request:
            self.scheduler.abort(request, str(error))
            del self._tracked[request.rid]
            self._compiling.pop(request.rid, None)
            tracked.listener.fail(error)

    @contextlib.contextmanager
    def _only(self, request: Request) -> Iterator[None]:
        """A block that makes text of tokens, which may run a model's own code: errors end that request."""
        try:
            yield
        except BaseException as error:
            if is_interrupt(error):
                raise
            self._fail(request, text_error(request, error))

    def _tell(self, request: Request, tracked: _Tracked) -> None:
        """Tell the listener of new tokens."""
        self._extend_text(request, tracked)
        if request.is_finished:
            self._finish(request.rid)
        elif tracked.growing is not None:
            tracked.growing.tell()

    def _extend_text(self, request: Request, tracked: _Tracked) -> None:
        """Push the new tokens; a stop string they complete ends the request (unless its last token did).

        The tokens behind the stop string, which a step with drafts may have brought along, are nobody's.
        """
        if tracked.text is None:
            return
        seen = request.num_prompt_tokens + tracked.text.num_tokens
        ended = request.finish_reason
        stopped = ended is not None and ended.type == "stop"
        matched = tracked.text.push(request.token_ids[seen : len(request.token_ids) - stopped])
        if matched is None:
            return
        num_tokens = request.num_prompt_tokens + tracked.text.num_tokens
        reason = FinishReason("stop", matched=matched)
        if num_tokens < len(request.token_ids):
            self.scheduler.finish(request, reason)
            request.finish_reason = reason
            request.truncate(tracked.text.num_tokens)
        elif not request.is_finished:
            self.scheduler.finish(request, reason)

    def _finish(self, rid: str) -> None:
        tracked = self._tracked[rid]
        text = None if self._detokenizer is None else _final_text(self._detokenizer, tracked)
        options = self._output_options(tracked.submission)
        output = self._build_output(tracked.submission.request, text, **options)
        del self._tracked[rid]
        tracked.listener.deliver(output)

    def _output_options(self, submission: Submission) -> dict[str, Any]:
        """What outputs have besides what is the request's own."""
        return {
            "token_text": self._token_text if submission.with_token_text else None,
            "index": submission.index,
            "weights_version": self.weights_version,
        }


def _final_text(detokenizer: Detokenizer, tracked: _Tracked) -> str:
    request = tracked.submission.request
    reason = request.finish_reason
    assert reason is not None  # it has ended
    stop_token = reason.matched if reason.type == "stop" and isinstance(reason.matched, int) else None
    if tracked.text is not None:
        return tracked.text.finish(stop_token, keep_stop=reason.type != "stop")
    ids = request.output_ids if stop_token is None else request.output_ids[:-1]
    return detokenizer.decode(
        ids,
        request.params,
        prompt_ids=request.token_ids[: request.num_prompt_tokens],
        reason_token=stop_token,
    )
