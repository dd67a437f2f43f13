"""The Engine: the object users hold. A thin façade over the core and the thread that owns it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, overload

from ..sampling.params import SamplingParams
from ..signatures import suggest_names
from .chat.options import ChatFields, ChatOptions
from .chat.plan import ChatPlan
from .host.side_thread import beside_loop, count_chars
from .output_kind import OutputKind
from .requests.arguments import GenerateArgs, RequestFields, logprob_fields
from .requests.scoring import ScorePlan
from .updatable import UpdatableEngine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from .chat.options import Chat, Messages
    from .chat.outputs import ChatOutput
    from .chat.plan import AsyncChatStream, ChatStream
    from .replies.embedding import EmbeddingOutput
    from .replies.handle import RequestHandle
    from .replies.outputs import Outputs, RequestOutput
    from .replies.streams import AsyncStream, Stream
    from .requests.arguments import Counts, Flags, OneParams, Params, Rids, Texts, Tokens
    from .requests.scoring import ScoreOutput

_named = suggest_names(
    "argument",
    {
        field.name: f"It is a sampling parameter: pass sampling_params={{{field.name!r}: ...}}."
        for field in dataclasses.fields(SamplingParams)
    },
)


class Engine(UpdatableEngine):
    """An LLM in this process: paged KV pool, radix prefix cache and continuous batching behind a few calls.

    Args:
        model_path: folder with config.json and weights, ``.gguf`` file, or hub id.
        **options: any field of :class:`rootlet.engine.config.EngineConfig`; unknown names raise
            UnknownOptionError with a suggestion.

    Example::

        with rootlet.Engine("model.gguf", max_total_tokens=100_000) as engine:
            out = engine.generate("The capital of France is", {"temperature": 0, "max_new_tokens": 8})
            print(out["text"], out["meta_info"]["cached_tokens"])
            for chunk in engine.generate("Once upon a time", stream=True):
                print(chunk["text"])
            print(await engine.async_generate(["Hello", "Bonjour"]))

    Any thread and any event loop may call; all callers share one batch. The work happens on one daemon thread
    that starts with the first request and ends with :meth:`close`, with the ``with`` block, or when the last
    reference to the engine goes. The engine starts no processes, installs no signal handlers and changes no
    global state. Ctrl-C in a waiting call aborts that call's requests only.

    Done callbacks and logit processors run on that thread. There ``submit``, ``abort`` and ``close`` work,
    and whatever would wait (``generate``, ``result()``, ``stats``, ...) raises EngineThreadError at once.
    What they raise, SystemExit included, is logged (a processor's: raised to those who wait for its
    requests). In a process forked off later every call raises EngineForkedError.

    Raises ConfigError, ModelError or WeightsError when it cannot be built.
    """

    # ---- generating --------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: str, sampling_params: Params = ..., input_ids: None = ...,
        return_logprob: Flags = ..., logprob_start_len: Counts = ..., top_logprobs_num: Counts = ..., *,
        stream: Literal[False] = ..., progress: bool = ..., **fields: Unpack[RequestFields],
    ) -> RequestOutput: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: list[str], sampling_params: Params = ..., input_ids: None = ...,
        return_logprob: Flags = ..., logprob_start_len: Counts = ..., top_logprobs_num: Counts = ..., *,
        stream: Literal[False] = ..., progress: bool = ..., **fields: Unpack[RequestFields],
    ) -> list[RequestOutput]: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: None = ..., sampling_params: Params = ..., *, input_ids: list[int],
        return_logprob: Flags = ..., logprob_start_len: Counts = ..., top_logprobs_num: Counts = ...,
        stream: Literal[False] = ..., progress: bool = ..., **fields: Unpack[RequestFields],
    ) -> RequestOutput: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: None = ..., sampling_params: Params = ..., *, input_ids: list[list[int]],
        return_logprob: Flags = ..., logprob_start_len: Counts = ..., top_logprobs_num: Counts = ...,
        stream: Literal[False] = ..., progress: bool = ..., **fields: Unpack[RequestFields],
    ) -> list[RequestOutput]: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: Texts = ..., sampling_params: Params = ..., input_ids: Tokens = ...,
        return_logprob: Flags = ..., logprob_start_len: Counts = ..., top_logprobs_num: Counts = ..., *,
        stream: Literal[True], progress: bool = ..., **fields: Unpack[RequestFields],
    ) -> Stream: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: Texts = ..., sampling_params: Params = ..., input_ids: Tokens = ...,
        return_logprob: Flags = ..., logprob_start_len: Counts = ..., top_logprobs_num: Counts = ..., *,
        stream: bool = ..., progress: bool = ..., **fields: Unpack[RequestFields],
    ) -> Outputs | Stream: ...  # fmt: skip

    @_named
    def generate(
        self,
        prompt: Texts = None,
        sampling_params: Params = None,
        input_ids: Tokens = None,
        return_logprob: bool | list[bool] = False,
        logprob_start_len: int | list[int] | None = None,
        top_logprobs_num: int | list[int] | None = None,
        *,
        stream: bool = False,
        progress: bool = False,
        **fields: Unpack[RequestFields],
    ) -> Outputs | Stream:
        """Generate from one prompt or many and wait for all of them.

        Args:
            prompt: a text or a list of texts. Exactly one of ``prompt``, ``input_ids`` and ``input_embeds``.
            sampling_params: dict or SamplingParams for all prompts, or a list with one per prompt.
            input_ids: token ids of one prompt, or a list of those.
            return_logprob: also return log-probabilities of output (and input) tokens.
            logprob_start_len: first prompt token whose log-probability is returned, so there are
                ``prompt_tokens - logprob_start_len``; that of token 0 is None. -1 or None: none.
            top_logprobs_num: likeliest alternatives per position.
            logprobs_of: the distribution that log-probabilities of output tokens and their alternatives are
                of, for all prompts or one per prompt: "sampled", what the token was drawn from (penalties,
                biases and constraint, and unless decoding is greedy temperature, top-k, top-p and min-p);
                "tempered", log_softmax(logits / temperature) over the whole vocabulary, which knows nothing
                else of the request, as a trainer computes it (a temperature of 0 counts as 1); "raw",
                log_softmax(logits). None, the default: the documented values, those of "sampled" but for
                top-k and min-p, which they do not reflect. Prompt tokens are always "raw".
            return_text_in_logprobs: add each token's text to the log-probability triples.
            stream: return an iterator of cumulative outputs; many prompts interleave and carry ``index``.
                Leaving the iterator early aborts what is unfinished.
            rid: your id of the request (one per prompt), else a random one.
            custom_logit_processor: a :class:`~rootlet.CustomLogitProcessor` (or its ``to_str()``), or any
                callable that takes and returns logits, for all prompts or one per prompt; it sees the
                ``custom_params`` of each request's sampling parameters.
            return_sampling_mask: also return, as ``sampling_mask``, the ids that each output token was drawn
                among: per token an ascending int32 array, or None where every token could have been drawn.
                Filters do not count in greedy decoding.
            return_hidden_states: also return the hidden states behind every token, in ``meta_info``; default:
                the engine's option of that name.
            session_params: continue a session of :meth:`open_session`: a dict with ``id`` and, as needed,
                ``rid``, ``offset``, ``replace`` (:class:`~rootlet.engine.requests.sessions.SessionParams`).
            input_embeds: the prompt as vectors ``[tokens, hidden_size]`` (tensor, array or lists) that stand
                in place of the embeddings of tokens, or a list of such prompts.
            continue_from: an output, or a list of them, to go on from instead of a prompt, as if it had never
                been interrupted. The result covers the whole, and ``max_new_tokens`` counts from the original
                prompt. Everything is as that request began, but ``sampling_params`` (whose stop tokens look
                at new tokens; the seed stays unless given) and ``custom_logit_processor`` may be given anew.
                What ended by a stop is returned as it is; so is what ended by its length, unless new
                parameters let it be longer.
            progress: show a bar that counts finished requests; not with ``stream``.

        Returns: a :class:`~rootlet.RequestOutput`, or a list in order (``index = prompt * n + sample``)
        when a list was passed or ``n > 1``.

        Raises InvalidRequestError, RequestTooLongError, InvalidParameterError or UnknownOptionError for a bad
        request (before anything runs); EngineClosedError, EngineFailedError.
        """
        scored = logprob_fields(return_logprob, logprob_start_len, top_logprobs_num)
        args = GenerateArgs(prompt, sampling_params, input_ids, stream, fields={**fields, **scored})
        return self._calls.run(args, progress)

    @overload
    async def async_generate(
        self, prompt: str, sampling_params: Params = ..., input_ids: None = ...,
        return_logprob: Flags = ..., logprob_start_len: Counts = ..., top_logprobs_num: Counts = ..., *,
        stream: Literal[False] = ..., progress: bool = ..., **fields: Unpack[RequestFields],
    ) -> RequestOutput: ...  # fmt: skip

    @overload
    async def async_generate(
        self, prompt: list[str], sampling_params: Params = ..., input_ids: None = ...,
        return_logprob: Flags = ..., logprob_start_len: Counts = ..., top_logprobs_num: Counts = ..., *,
        stream: Literal[False] = ..., progress: bool = ..., **fields: Unpack[RequestFields],
    ) -> list[RequestOutput]: ...  # fmt: skip

    @overload
    async def async_generate(
        self, prompt: None = ..., sampling_params: Params = ..., *, input_ids: list[int],
        return_logprob: Flags = ..., logprob_start_len: Counts = ..., top_logprobs_num: Counts = ...,
        stream: Literal[False] = ..., progress: bool = ..., **fields: Unpack[RequestFields],
    ) -> RequestOutput: ...  # fmt: skip

    @overload
    async def async_generate(
        self, prompt: None = ..., sampling_params: Params = ..., *, input_ids: list[list[int]],
        return_logprob: Flags = ..., logprob_start_len: Counts = ..., top_logprobs_num: Counts = ...,
        stream: Literal[False] = ..., progress: bool = ..., **fields: Unpack[RequestFields],
    ) -> list[RequestOutput]: ...  # fmt: skip

    @overload
    async def async_generate(
        self, prompt: Texts = ..., sampling_params: Params = ..., input_ids: Tokens = ...,
        return_logprob: Flags = ..., logprob_start_len: Counts = ..., top_logprobs_num: Counts = ..., *,
        stream: Literal[True], progress: bool = ..., **fields: Unpack[RequestFields],
    ) -> AsyncStream: ...  # fmt: skip

    @overload
    async def async_generate(
        self, prompt: Texts = ..., sampling_params: Params = ..., input_ids: Tokens = ...,
        return_logprob: Flags = ..., logprob_start_len: Counts = ..., top_logprobs_num: Counts = ..., *,
        stream: bool = ..., progress: bool = ..., **fields: Unpack[RequestFields],
    ) -> Outputs | AsyncStream: ...  # fmt: skip

    @_named
    async def async_generate(
        self,
        prompt: Texts = None,
        sampling_params: Params = None,
        input_ids: Tokens = None,
        return_logprob: bool | list[bool] = False,
        logprob_start_len: int | list[int] | None = None,
        top_logprobs_num: int | list[int] | None = None,
        *,
        stream: bool = False,
        progress: bool = False,
        **fields: Unpack[RequestFields],
    ) -> Outputs | AsyncStream:
        """:meth:`generate` for a running event loop, which is never blocked by the model.

        ``await`` gives the result, or with ``stream=True`` an async iterator of cumulative outputs.
        Cancelling the awaiting task aborts its requests.
        """
        scored = logprob_fields(return_logprob, logprob_start_len, top_logprobs_num)
        args = GenerateArgs(prompt, sampling_params, input_ids, stream, fields={**fields, **scored})
        return await self._calls.run_async(args, progress)

    @overload
    def chat(
        self, messages: Chat, sampling_params: Params = ..., *,
        stream: Literal[False] = ..., progress: bool = ..., **fields: Unpack[ChatFields],
    ) -> ChatOutput: ...  # fmt: skip

    @overload
    def chat(
        self, messages: Sequence[Chat], sampling_params: Params = ..., *,
        stream: Literal[False] = ..., progress: bool = ..., **fields: Unpack[ChatFields],
    ) -> list[ChatOutput]: ...  # fmt: skip

    @overload
    def chat(
        self, messages: Messages, sampling_params: Params = ..., *,
        stream: Literal[True], progress: bool = ..., **fields: Unpack[ChatFields],
    ) -> ChatStream: ...  # fmt: skip

    @overload
    def chat(
        self, messages: Messages, sampling_params: Params = ..., *,
        stream: bool = ..., progress: bool = ..., **fields: Unpack[ChatFields],
    ) -> ChatOutput | list[ChatOutput] | ChatStream: ...  # fmt: skip

    @_named
    def chat(
        self,
        messages: Messages,
        sampling_params: Params = None,
        *,
        stream: bool = False,
        progress: bool = False,
        **fields: Unpack[ChatFields],
    ) -> ChatOutput | list[ChatOutput] | ChatStream:
        """Answer one conversation or many, by the model's chat template.

        Args:
            messages: ``[{"role": ..., "content": ...}, ...]``, or a list of such lists. If the last message
                is the assistant's, the reply continues it, and does not repeat it.
            sampling_params: as in :meth:`generate`; the template's stop strings are added.
            tools: what the model may call: :class:`~rootlet.Tool` or ``{"type": "function", "function":
                {"name", "description", "parameters"}}``.
            tool_choice: "auto", "none", "required" or the name of a tool, or as the OpenAI API writes it;
                calls that must be made are forced by a grammar.
            response_format: ``{"type": "text" | "json_object"}``, ``{"type": "json_schema", "json_schema":
                {"schema": ...}}`` (whatever ``json_schema`` takes as a parameter), or a Pydantic model.
            stream: return an iterator of :class:`~rootlet.engine.chat.outputs.ChatDelta`: what is new.
            return_logprob, top_logprobs_num, rid, custom_logit_processor, progress: as in :meth:`generate`.

        Returns: a :class:`~rootlet.ChatOutput`, or a list in order when a list of conversations was passed or
        ``n > 1``. Raises as :meth:`generate`.
        """
        options, others = ChatOptions.split(fields)
        plan = ChatPlan(self.chat_renderer, messages, sampling_params, options)
        args = GenerateArgs(**plan.arguments, stream=stream, fields=others)
        outputs = self._calls.run(args, progress)
        return plan.iterate(outputs) if stream else plan.collect(outputs)

    @overload
    async def async_chat(
        self, messages: Chat, sampling_params: Params = ..., *,
        stream: Literal[False] = ..., progress: bool = ..., **fields: Unpack[ChatFields],
    ) -> ChatOutput: ...  # fmt: skip

    @overload
    async def async_chat(
        self, messages: Sequence[Chat], sampling_params: Params = ..., *,
        stream: Literal[False] = ..., progress: bool = ..., **fields: Unpack[ChatFields],
    ) -> list[ChatOutput]: ...  # fmt: skip

    @overload
    async def async_chat(
        self, messages: Messages, sampling_params: Params = ..., *,
        stream: Literal[True], progress: bool = ..., **fields: Unpack[ChatFields],
    ) -> AsyncChatStream: ...  # fmt: skip

    @overload
    async def async_chat(
        self, messages: Messages, sampling_params: Params = ..., *,
        stream: bool = ..., progress: bool = ..., **fields: Unpack[ChatFields],
    ) -> ChatOutput | list[ChatOutput] | AsyncChatStream: ...  # fmt: skip

    @_named
    async def async_chat(
        self,
        messages: Messages,
        sampling_params: Params = None,
        *,
        stream: bool = False,
        progress: bool = False,
        **fields: Unpack[ChatFields],
    ) -> ChatOutput | list[ChatOutput] | AsyncChatStream:
        """:meth:`chat` for a running event loop; with ``stream=True`` ``await`` gives an async iterator."""
        options, others = ChatOptions.split(fields)
        plan = await beside_loop(
            count_chars(messages), ChatPlan, self.chat_renderer, messages, sampling_params, options
        )
        args = GenerateArgs(**plan.arguments, stream=stream, fields=others)
        outputs = await self._calls.run_async(args, progress)
        return plan.iterate_async(outputs) if stream else plan.collect(outputs)

    @_named
    def submit(
        self,
        prompt: str | None = None,
        sampling_params: OneParams = None,
        input_ids: list[int] | None = None,
        return_logprob: bool = False,
        logprob_start_len: int | None = None,
        top_logprobs_num: int | None = None,
        *,
        stream: bool = True,
        **fields: Unpack[RequestFields],
    ) -> RequestHandle:
        """Start one request and return at once with its handle.

        Arguments as in :meth:`generate`, for a single prompt with ``n=1``. With ``stream=False`` the handle
        sees the final output only, which costs the engine less.
        """
        scored = logprob_fields(return_logprob, logprob_start_len, top_logprobs_num)
        args = GenerateArgs(prompt, sampling_params, input_ids, stream, fields={**fields, **scored})
        return self._calls.submit_one(args)

    @_named
    def score(
        self, prompts: Any, continuations: Any, *, progress: bool = False
    ) -> list[ScoreOutput] | list[list[ScoreOutput]]:
        """Log-likelihoods of continuations after prompts; a prompt is computed once for all of its own.

        Args:
            prompts: a text (or list of token ids), or a list of those.
            continuations: for one prompt a list of texts (or of lists of token ids), for a list of prompts a
                list of such lists.
            progress: show a bar that counts scored continuations.

        Returns: a :class:`~rootlet.engine.requests.scoring.ScoreOutput` per continuation, in the argument's
        shape.

        Raises InvalidRequestError, RequestTooLongError; EngineClosedError, EngineFailedError.
        """
        plan = ScorePlan(self._encoder, prompts, continuations)
        return plan.collect(self.generate(**plan.arguments, progress=progress) if plan.input_ids else [])

    @_named
    async def async_score(
        self, prompts: Any, continuations: Any, *, progress: bool = False
    ) -> list[ScoreOutput] | list[list[ScoreOutput]]:
        """:meth:`score` for a running event loop."""
        plan = await beside_loop(
            count_chars([prompts, continuations]), ScorePlan, self._encoder, prompts, continuations
        )
        return plan.collect(
            await self.async_generate(**plan.arguments, progress=progress) if plan.input_ids else []
        )

    # ---- embedding -----------------------------------------------------------------------------------

    @_named
    def encode(
        self, prompt: Texts = None, input_ids: Tokens = None, *, rid: Rids = None, progress: bool = False
    ) -> EmbeddingOutput | list[EmbeddingOutput]:
        """Embed one text or many: of an embedding model, or any with ``is_embedding=True``.

        Arguments as in :meth:`generate`. The embedding is the state of the last token after the final norm,
        of length 1; of a model with labels it is their scores.

        Raises InvalidRequestError if the engine generates text, else as :meth:`generate`.
        """
        return self._calls.run(
            GenerateArgs.for_embedding(prompt, input_ids, OutputKind.EMBEDDING, rid), progress
        )

    @_named
    async def async_encode(
        self, prompt: Texts = None, input_ids: Tokens = None, *, rid: Rids = None, progress: bool = False
    ) -> EmbeddingOutput | list[EmbeddingOutput]:
        """:meth:`encode` for a running event loop."""
        args = GenerateArgs.for_embedding(prompt, input_ids, OutputKind.EMBEDDING, rid)
        return await self._calls.run_async(args, progress)

    @_named
    def classify(
        self, prompt: Texts = None, input_ids: Tokens = None, *, rid: Rids = None, progress: bool = False
    ) -> EmbeddingOutput | list[EmbeddingOutput]:
        """Score one text or many with a classifier (``*ForSequenceClassification``) or reward model.

        ``out["embedding"]`` holds the logit of each label, of a reward model the reward. Arguments as in
        :meth:`generate`. Raises InvalidRequestError if the model has no labels, else as :meth:`encode`.
        """
        return self._calls.run(
            GenerateArgs.for_embedding(prompt, input_ids, OutputKind.SCORES, rid), progress
        )

    @_named
    async def async_classify(
        self, prompt: Texts = None, input_ids: Tokens = None, *, rid: Rids = None, progress: bool = False
    ) -> EmbeddingOutput | list[EmbeddingOutput]:
        """:meth:`classify` for a running event loop."""
        args = GenerateArgs.for_embedding(prompt, input_ids, OutputKind.SCORES, rid)
        return await self._calls.run_async(args, progress)
