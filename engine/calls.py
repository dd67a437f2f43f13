"""A call of ``generate`` or a sibling: build the requests, hand them to the loop, wait for them or stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InvalidRequestError
from .host.modes import on_plain_thread
from .host.side_thread import beside_loop, count_chars
from .replies import progress_bar, streams
from .replies.handle import RequestHandle
from .requests.arguments import check_flag
from .requests.continuing import Finished

if TYPE_CHECKING:
    from .core import EngineCore
    from .loop import EngineLoop
    from .requests.arguments import GenerateArgs
    from .requests.factory import RequestFactory, Submission

T = TypeVar("T")


class Calls:
    """The callers' side of an engine; any thread may call."""

    def __init__(self, factory: RequestFactory, loop: EngineLoop) -> None:
        self._factory = factory
        self._loop = loop
        self.before_start: Callable[[], None] = _nothing
        """Called before requests are handed over; what it raises is the call's."""

    def run(self, args: GenerateArgs, progress: bool) -> Any:
        """Wait for the outputs of a call, one or a list; or give a stream of them."""
        _check_progress(progress, args.stream)
        if args.stream:
            return streams.Stream(self._submit(args)[0], self._loop)
        self._loop.check_wait()
        handles, is_batch = self._submit(args)
        try:
            if progress:
                progress_bar.watch(handles, self._loop)
            results = [handle.result() for handle in handles]
        finally:  # Ctrl-C, or one of several failed: nobody waits for the others any more
            for handle in handles:
                handle.abort()
        return results if is_batch else results[0]

    async def run_async(self, args: GenerateArgs, progress: bool) -> Any:
        """:meth:`run` for a running event loop."""
        _check_progress(progress, args.stream)
        self._loop.check_open()
        if not args.stream:
            self._loop.check_wait()
        submissions, is_batch = await beside_loop(
            count_chars(args.prompt), self._build, self._factory.build, args
        )
        handles = self._start(submissions)
        if args.stream:
            return streams.AsyncStream(handles, self._loop)
        try:
            if progress:
                await progress_bar.watch_async(handles, self._loop)
            results = [await handle for handle in handles]
        finally:
            for handle in handles:
                handle.abort()
        return results if is_batch else results[0]

    def submit_one(self, args: GenerateArgs) -> RequestHandle:
        """Start a single request."""
        self._loop.check_open()
        return self._start([self._build(self._factory.build_one, args)])[0]

    def _submit(self, args: GenerateArgs) -> tuple[list[RequestHandle], bool]:
        self._loop.check_open()  # before any work, and before locks that a forked child may find held
        submissions, is_batch = self._build(self._factory.build, args)
        return self._start(submissions), is_batch

    def _build(self, build: Callable[[GenerateArgs], T], args: GenerateArgs) -> T:
        """``build(args)``; vectors are read where no mode of the caller's applies."""
        return build(args) if args.input_embeds is None else on_plain_thread(build, args)

    def _start(self, submissions: Sequence[Submission | Finished]) -> list[RequestHandle]:
        loop = self._loop
        handles = [self._handle(one) for one in submissions]
        new = [(s, handle) for s, handle in zip(submissions, handles) if not isinstance(s, Finished)]
        if new:
            self.before_start()

        def add(core: EngineCore) -> None:
            for submission, handle in new:
                core.add(submission, handle)

        def refuse(error: BaseException) -> None:
            for _, handle in new:
                handle.fail(error)

        if new:
            loop.post(add, refuse)  # one command: a batch is scheduled as a whole
        for grammar in {s.grammar for s, _ in new if s.grammar is not None}:
            grammar.add_done_callback(lambda _: loop.wake())
        for submission, handle in new:
            if submission.turn is not None:
                submission.turn.record(handle)
        return handles

    def _handle(self, one: Submission | Finished) -> RequestHandle:
        if not isinstance(one, Finished):
            return RequestHandle(one.request.rid, self._loop, is_streamed=one.stream)
        handle = RequestHandle(one.output.rid, self._loop)
        handle.deliver(one.output)
        return handle


def _nothing() -> None:
    """Nothing to check."""


def _check_progress(progress: bool, stream: bool) -> None:
    check_flag("stream", stream)
    if check_flag("progress", progress) and stream:
        raise InvalidRequestError(
            "progress=True counts finished requests while you wait, stream=True returns at once: "
            "leave one of them out."
        )
