"""One call of ``chat``: conversations to the arguments of ``generate``, its outputs to replies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from ...errors import InvalidRequestError
from ...sampling.params import SamplingParams
from .conversation import Conversation

if TYPE_CHECKING:
    from ..replies.outputs import RequestOutput
    from ..replies.streams import AsyncStream, Stream
    from .options import ChatOptions
    from .outputs import ChatDelta, ChatOutput
    from .render import ChatRenderer
    from .reply import ReplyReader


class ChatPlan:
    """The prompts and parameters of conversations, ``arguments`` of generate, and how to read the outputs.

    Args:
        renderer: the engine's.
        messages: those of one conversation, or a list of such lists.
        sampling_params: as in generate.
        options: what holds for all conversations.

    Raises InvalidRequestError, InvalidParameterError, UnknownOptionError.
    """

    def __init__(
        self, renderer: ChatRenderer, messages: Any, sampling_params: Any, options: ChatOptions
    ) -> None:
        self._renderer = renderer
        self._options = options
        many = isinstance(messages, (list, tuple)) and bool(messages)
        is_batch = many and all(isinstance(one, (list, tuple)) for one in messages)
        conversations = [Conversation.from_json(one) for one in (messages if is_batch else [messages])]
        given = sampling_params if isinstance(sampling_params, (list, tuple)) else None
        if given is not None and len(given) != len(conversations):
            raise InvalidRequestError(
                f"sampling_params has {len(given)} entries for {len(conversations)} conversations: give one"
                " per conversation, or a single one for all."
            )
        params = [SamplingParams.read(one) for one in given or [sampling_params] * len(conversations)]
        self._n = params[0].n  # generate refuses different ones
        prepared = [options.prepare(renderer, *one) for one in zip(conversations, params)]
        self._prompts = [prompt for prompt, _ in prepared]
        ids = [prompt.token_ids for prompt in self._prompts]
        self.arguments: dict[str, Any] = {
            "input_ids": ids if is_batch else ids[0],
            "sampling_params": [one for _, one in prepared] if is_batch else prepared[0][1],
        }

    def collect(self, outputs: RequestOutput | list[RequestOutput]) -> ChatOutput | list[ChatOutput]:
        """The replies, in the form of ``outputs``."""
        if isinstance(outputs, list):
            return [self._reply(output) for output in outputs]
        return self._reply(outputs)

    def iterate(self, outputs: Stream) -> ChatStream:
        """What is new as it comes."""
        return ChatStream(self, outputs)

    def iterate_async(self, outputs: AsyncStream) -> AsyncChatStream:
        """:meth:`iterate` for a running event loop."""
        return AsyncChatStream(self, outputs)

    def read(self, readers: dict[int, ReplyReader], output: RequestOutput) -> ChatDelta | None:
        """What ``output`` has that is new to the reader of its reply, which is made when it is needed."""
        return self._reader(readers, output).read(output)

    def _reply(self, output: RequestOutput) -> ChatOutput:
        return self._reader({}, output).read_whole(output)

    def _reader(self, readers: dict[int, ReplyReader], output: RequestOutput) -> ReplyReader:
        index = output.index or 0
        if index not in readers:
            readers[index] = self._options.reader(self._renderer, self._prompts[index // self._n])
        return readers[index]


class ChatStream(Iterator["ChatDelta"]):
    """Pieces of replies as they come; closed, dropped or left early, begun or not, it aborts the rest."""

    def __init__(self, plan: ChatPlan, outputs: Stream) -> None:
        self._plan = plan
        self._outputs = outputs
        self._readers: dict[int, ReplyReader] = {}

    def __next__(self) -> ChatDelta:
        try:
            for output in self._outputs:
                if delta := self._plan.read(self._readers, output):
                    return delta
        except BaseException:
            self.close()
            raise
        raise StopIteration

    def close(self) -> None:
        """Abort what is unfinished."""
        self._outputs.close()


class AsyncChatStream(AsyncIterator["ChatDelta"]):
    """:class:`ChatStream` for a running event loop."""

    def __init__(self, plan: ChatPlan, outputs: AsyncStream) -> None:
        self._plan = plan
        self._outputs = outputs
        self._readers: dict[int, ReplyReader] = {}

    async def __anext__(self) -> ChatDelta:
        try:
            async for output in self._outputs:
                if delta := self._plan.read(self._readers, output):
                    return delta
        except BaseException:
            await self.aclose()
            raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Abort what is unfinished."""
        await self._outputs.aclose()
