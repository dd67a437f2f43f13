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
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

from ..errors import InvalidRequestError, RootletError, is_interrupt
from .host.code import call_host
from .replies.growing import GrowingOutput, text_error
from .replies.outputs import DocumentedOutput, build_output
from .schedule.constraint import RequestConstraint
from .schedule.request import FinishReason, Request, RequestStatus
from .schedule.versions import Label, Versions

if TYPE_CHECKING:
    from ..grammar.compiler import Compilation
    from .replies.detokenizer import Detokenizer, TextStream
    from .requests.factory import Submission
    from .schedule.batch import Batch, StepResult
    from .schedule.scheduler import Scheduler


OnRunning: TypeAlias = Literal["abort", "finish", "recompute", "keep"]
"""What becomes of requests when the engine is to stand still: they end with what they have (those that wait
too); they run to their ends; they keep their tokens, and what was computed of them is computed again; they
keep that as well."""


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
        get_ready: called again and again between requests, once somebody has streamed, until it says False:
            a part of what makes later steps faster.
        refusal: why no request may be added now, None where one may.
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
        get_ready: Callable[[], bool] | None = None,
        refusal: Callable[[], RootletError | None] = lambda: None,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.weights_version: Label = 0
        self._detokenizer = detokenizer
        self._overlap = overlap
        self._stream_interval = stream_interval
        self._token_text = token_text
        self._build_output = build_output
        self._after_step = after_step
        self._get_ready = get_ready
        self._is_ready = get_ready is None
        self._refusal = refusal
        self._has_streamed = False
        self._num_stops = 0
        self._when_quiet: list[Callable[[], None]] = []
        self._in_flight: _InFlight | None = None
        self._tracked: dict[str, _Tracked] = {}
        self._compiling: dict[str, Compilation] = {}

    # ---- requests ----------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """True while :meth:`step` has something to do, which requests with no grammar yet are not."""
        if self._in_flight is not None:
            return True
        if self._num_stops and not self.scheduler.is_draining:
            return False
        return self.scheduler.has_work or any(grammar.done() for grammar in self._compiling.values())

    @property
    def rids(self) -> list[str]:
        """Of the requests that have not ended, in the order they came."""
        return [*self._tracked]

    @property
    def is_idle(self) -> bool:
        """True while there is no request of any kind, and no step under way."""
        return self._in_flight is None and not self._tracked

    @property
    def is_getting_ready(self) -> bool:
        """True while :meth:`get_ready` has something to do."""
        return not self._is_ready and self._has_streamed and self.is_idle and not self._num_stops

    def get_ready(self) -> None:
        """Do a part of what makes later steps faster. Readers of streams notice those that are not."""
        self._is_ready = self._get_ready is None or not self._get_ready()

    def get_ready_again(self) -> None:
        """What was done to be ready is undone: begin anew."""
        self._is_ready = self._get_ready is None

    def wait_for_grammars(self) -> None:
        """Block until a grammar is compiled, if that is all that requests wait for."""
        if not self.has_work and self._compiling:
            wait(self._compiling.values(), return_when=FIRST_COMPLETED)

    def add(self, submission: Submission, listener: Listener) -> None:
        """Take a request; ``listener`` hears about it from :meth:`step`."""
        request = submission.request
        refused = self._refusal()
        if request.rid in self._tracked:
            refused = InvalidRequestError(f"A request with rid {request.rid!r} is still running.")
        if refused is not None:
            listener.fail(refused)
            if submission.grammar is not None:
                submission.grammar.release()
            return
        grammar = submission.grammar
        if grammar is not None and grammar.done():
            error = grammar.exception()
            if error is not None:
                listener.fail(error)
                return
            request.constraint = RequestConstraint(grammar.result(), request.output_ids)
        elif grammar is not None:
            request.status = RequestStatus.COMPILING
            self._compiling[request.rid] = grammar
        detokenizer = self._detokenizer if request.params.stop else None
        request.versions = Versions(self.weights_version)
        if request.num_output_tokens:
            request.versions.begin_behind(submission.spans, request.num_output_tokens)
        request.is_watched, request.is_streamed = detokenizer is not None, submission.stream
        tracked = self._tracked[request.rid] = _Tracked(submission, listener)
        self.scheduler.add(request)
        if detokenizer is not None:
            with self._only(request):
                tracked.text = detokenizer.start(
                    request.params, request.token_ids[: request.num_prompt_tokens]
                )
                if request.num_output_tokens:
                    self._extend_text(request, tracked)
            if request.is_finished:  # new stop strings, one of which is there already
                self.abort(request.rid)
                return
        if submission.stream:
            self._has_streamed = True
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
            self._tell_when_quiet()

    def _take_grammars(self) -> None:
        """Let requests whose grammars are compiled go on, and end those whose grammars are refused."""
        for rid in [rid for rid, grammar in self._compiling.items() if grammar.done()]:
            grammar = self._compiling.pop(rid)
            request = self._tracked[rid].submission.request
            error = grammar.exception()
            if error is None:
                request.constraint = RequestConstraint(grammar.result(), request.output_ids)
                self.scheduler.make_ready(request)
            else:
                self._fail(request, error)

    def abort_all(self, message: str = "Aborted by the caller.") -> int:
        """End every request with what it has; how many there were."""
        rids = list(self._tracked)
        for rid in rids:
            self.abort(rid, message)
        return len(rids)

    # ---- standing still ----------------------------------------------------------------------------

    @property
    def is_stopped(self) -> bool:
        """Whether it takes no steps, or only those that running requests need to end."""
        return self._num_stops > 0

    def stop(self, on_running: OnRunning, when_quiet: Callable[[], None] | None = None) -> int:
        """Take no steps from now on; ``when_quiet()`` is called when none is under way or due.

        Requests may be added meanwhile and wait. What becomes of those that run says ``on_running``: see
        :data:`OnRunning`. Returns how many were aborted. As many :meth:`go_on` as stops start it again.
        Raises InvalidRequestError where requests could never end because it stands still already.
        """
        if on_running == "finish" and self._num_stops and self.scheduler.running:
            raise InvalidRequestError(
                "The engine is paused, so requests that run cannot finish: resume() first, or choose"
                " 'abort', 'recompute' or 'keep'."
            )
        self._num_stops += 1
        if self._in_flight is not None:
            ahead, self._in_flight = self._in_flight, None
            self._commit(ahead)
        num_aborted = 0
        if on_running == "abort":
            num_aborted = self.abort_all("The engine was stopped.")
        elif on_running == "recompute":
            self.scheduler.preempt_all()
        elif on_running == "finish":
            self.scheduler.is_draining = True
        if when_quiet is not None:
            self._when_quiet.append(when_quiet)
        self._tell_when_quiet()
        return num_aborted

    def go_on(self) -> None:
        """Take back one :meth:`stop`."""
        self._num_stops -= 1
        if not self._num_stops:
            self.scheduler.is_draining = False

    def renew_weights(self, label: Label) -> None:
        """The weights are others now, called ``label``; only while it stands still."""
        self.weights_version = label
        self.scheduler.renew_weights()
        for tracked in self._tracked.values():
            request = tracked.submission.request
            request.versions.renew(label, request.num_output_tokens)

    def _tell_when_quiet(self) -> None:
        if self._when_quiet and not self.has_work:
            self.scheduler.is_draining = False
            waiting, self._when_quiet = self._when_quiet, []
            for tell in waiting:
                tell()

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
        self._tell_when_quiet()
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
