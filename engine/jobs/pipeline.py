"""Keeping an engine busy: submit lines up to a limit, write each record as its line finishes."""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...errors import EngineClosedError, EngineFailedError, InvalidRequestError, JobError, RootletError
from ..chat.conversation import Conversation
from .identity import LineError
from .lines import answer_record, error_record, internal_error, line_error
from .output_file import OutputFile
from .progress import Progress
from .request import JobLine, Prompt

if TYPE_CHECKING:
    from ...sampling.params import SamplingParams
    from ..chat.reply import ReplyReader
    from ..engine import Engine
    from ..replies.handle import RequestHandle
    from ..replies.outputs import RequestOutput

logger = logging.getLogger("rootlet.jobs")

_TICK_SECONDS = 0.5


class _Task:
    """One line in flight: its handles, who reads their replies, and how many of them are still running."""

    def __init__(self, line: JobLine) -> None:
        self.line = line
        self.handles: list[RequestHandle] = []
        self.readers: list[ReplyReader] = []  # of a conversation
        self.num_running = 0


class Pipeline:
    """Runs lines through ``engine`` and writes their records; used once, by one thread.

    The engine's thread only puts finished requests into a queue; the calling thread does all the rest.
    """

    def __init__(self, engine: Engine, output: OutputFile, progress: Progress, max_in_flight: int) -> None:
        self._engine = engine
        self._output = output
        self._progress = progress
        self._max_in_flight = max_in_flight
        self._finished: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._tasks: dict[_Task, None] = {}  # an ordered set
        self._num_in_flight = 0

    def run(self, lines: Iterator[JobLine]) -> None:
        """Answer every line.

        Whatever interrupts it (Ctrl-C, an engine that fails, a full disk), what had finished is written
        before the exception leaves, and the rest is aborted.
        """
        try:
            for line in lines:
                while self._num_in_flight >= self._max_in_flight:
                    self._collect()
                self._start(line)
                while not self._finished.empty():
                    self._collect()
            while self._num_in_flight:
                self._collect()
        except BaseException:
            self._stop(write=not self._output.failed)
            raise

    def _start(self, line: JobLine) -> None:
        if line.request is None:
            assert line.error is not None
            self._write_error(line, line.error)
            return
        task = _Task(line)
        self._tasks[task] = None
        try:
            for index in range(line.request.num_samples):
                task.handles.append(self._submit(task, *line.request.sample(index)))
        except RootletError as error:
            if isinstance(error, (EngineClosedError, EngineFailedError)):
                raise
            self._refuse(task, line_error(error))
            return
        except Exception as error:  # a fault of ours must not stop the other lines
            logger.exception("Line %d could not be submitted", line.identity.index + 1)
            self._refuse(task, internal_error(error))
            return
        # callbacks only now: a line one of whose samples was refused must not be reported as finished
        task.num_running = len(task.handles)
        self._num_in_flight += len(task.handles)
        for handle in task.handles:
            handle.add_done_callback(lambda _: self._finished.put(task))

    def _submit(self, task: _Task, prompt: Prompt, params: SamplingParams) -> RequestHandle:
        line = task.line
        assert line.request is not None
        if line.is_openai and self._engine.tokenizer is None:
            raise InvalidRequestError("OpenAI lines need a tokenizer, and the engine was built without one.")
        options: dict[str, Any] = {"stream": False}  # only the end matters
        if line.request.logprobs:
            options |= {
                "return_logprob": True,
                "return_text_in_logprobs": line.is_openai,
                "logprob_start_len": line.request.logprobs.logprob_start_len,
                "top_logprobs_num": line.request.logprobs.top_logprobs_num,
            }
        if isinstance(prompt, Conversation):
            chat, renderer = line.request.chat, self._engine.chat_renderer
            rendered, params = chat.prepare(renderer, prompt, params)
            options["input_ids"] = rendered.token_ids
            task.readers.append(chat.reader(renderer, rendered))
        else:
            options |= {"prompt": prompt} if isinstance(prompt, str) else {"input_ids": list(prompt)}
        return self._engine.submit(sampling_params=params, **options)

    def _collect(self) -> None:
        """Wait for a request to finish; if it was its line's last one, write the record."""
        while True:
            try:
                task = self._finished.get(timeout=_TICK_SECONDS)
                break
            except queue.Empty:
                self._progress.tick()
        self._num_in_flight -= 1
        task.num_running -= 1
        if task.num_running == 0:
            self._finish(task)

    def _finish(self, task: _Task) -> None:
        del self._tasks[task]
        try:
            outputs = [handle.result() for handle in task.handles]
            if error := _abort_error(outputs):
                self._write_error(task.line, error)
                return
            replies = [reader.read_whole(output) for reader, output in zip(task.readers, outputs)]
            answer = answer_record(task.line, outputs, replies, self._engine.tokenizer)
        except (EngineClosedError, EngineFailedError, JobError):
            raise
        except RootletError as error:
            self._write_error(task.line, line_error(error))
            return
        except Exception as error:  # a fault of ours must not stop the other lines
            logger.exception("The answer of line %d could not be read", task.line.identity.index + 1)
            self._write_error(task.line, internal_error(error))
            return
        self._output.append(answer)
        self._progress.answered(outputs)

    def _write_error(self, line: JobLine, error: LineError) -> None:
        self._output.append(error_record(line, error))
        self._progress.refused(line.identity.index + 1, error)

    def _refuse(self, task: _Task, error: LineError) -> None:
        del self._tasks[task]
        for handle in task.handles:
            handle.abort()
        self._write_error(task.line, error)

    def _stop(self, write: bool) -> None:
        """Write what has finished (unless writing is what failed), then abort the rest."""
        if write:
            while not self._finished.empty():
                with contextlib.suppress(RootletError, OSError):
                    self._collect()
        for task in self._tasks:
            for handle in task.handles:
                with contextlib.suppress(RootletError):
                    handle.abort()


def _abort_error(outputs: list[RequestOutput]) -> LineError | None:
    for output in outputs:
        reason = output.finish_reason or {}
        if reason.get("type") == "abort":
            return LineError("aborted", str(reason.get("message") or "The request was aborted."))
    return None
