"""The Engine: the object users hold. A thin façade over the core and the thread that owns it."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import InvalidRequestError
from ..sampling.params import SamplingParams
from ..signatures import suggest_names
from ..version import __version__
from .build.thread import build_on_thread
from .calls import Calls
from .chat.options import ChatOptions
from .chat.plan import ChatPlan
from .config import EngineConfig
from .core import EngineCore
from .host import modes as host_modes
from .host.side_thread import beside_loop, count_chars
from .loop import EngineLoop
from .profiling import Profile
from .replies.embedding import EmbeddingOutput
from .replies.handle import RequestHandle
from .requests.factory import GenerateArgs, RequestFactory
from .requests.scoring import ScoreOutput, ScorePlan
from .requests.sessions import Sessions
from .stats import EngineStats, collect

_named = suggest_names(
    "argument",
    {
        field.name: f"It is a sampling parameter: pass sampling_params={{{field.name!r}: ...}}."
        for field in dataclasses.fields(SamplingParams)
    },
)


class Engine:
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

    def __init__(self, model_path: str, **options: Any) -> None:
        self.config = EngineConfig.from_options(model_path, options)
        parts = build_on_thread(self.config)
        self.tokenizer = parts.tokenizer
        self.tokenizer_manager = SimpleNamespace(tokenizer=parts.tokenizer)  # where documented examples look
        self.chat_renderer = parts.chat_renderer  # messages to prompts
        self._resolved = parts.resolved
        self._constraints = parts.constraints
        self._encoder = parts.encoder
        self._sessions = Sessions(getattr(parts.tokenizer, "bos_token_id", None))
        self._factory = RequestFactory(
            parts.tokenizer,
            parts.limits,
            parts.resolved.eos_token_ids,
            self.config.random_seed,
            hidden_states=self.config.return_hidden_states,
            sessions=self._sessions,
            embeds=parts.resolved.embeds,
            auto_truncate=self.config.allow_auto_truncate,
            constraints=parts.constraints,
            encoder=parts.encoder,
        )
        self._loop = EngineLoop(
            parts.core, parts.release, by_hand=self.config.step_by_hand, shielded=host_modes.shielded
        )
        self._profile = Profile(parts.resolved.device)
        self._calls = Calls(self._factory, self._loop)
        # The loop refers to the core and never to this object, so this runs when the last reference goes. It
        # runs at interpreter exit as well: a thread stopped in the middle of a step would abort the process.
        self._finalizer = weakref.finalize(self, self._loop.close)

    # ---- generating --------------------------------------------------------------------------------

    @_named
    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: Any = None,
        input_ids: list[int] | list[list[int]] | None = None,
        return_logprob: bool | list[bool] = False,
        logprob_start_len: int | list[int] | None = None,
        top_logprobs_num: int | list[int] | None = None,
        *,
        return_text_in_logprobs: bool = False,
        stream: bool = False,
        rid: str | list[str] | None = None,
        custom_logit_processor: Any = None,
        return_hidden_states: bool | list[bool] | None = None,
        session_params: dict[str, Any] | list[dict[str, Any]] | None = None,
        input_embeds: Any = None,
        progress: bool = False,
    ) -> Any:
        """Generate from one prompt or many and wait for all of them.

        Args:
            prompt: a text or a list of texts. Exactly one of ``prompt``, ``input_ids`` and ``input_embeds``.
            sampling_params: dict or SamplingParams for all prompts, or a list with one per prompt.
            input_ids: token ids of one prompt, or a list of those.
            return_logprob: also return log-probabilities of output (and input) tokens.
            logprob_start_len: first prompt token whose log-probability is returned, so there are
                ``prompt_tokens - logprob_start_len``; that of token 0 is None. -1 or None: none.
            top_logprobs_num: likeliest alternatives per position.
            return_text_in_logprobs: add each token's text to the log-probability triples.
            stream: return an iterator of cumulative outputs; many prompts interleave and carry ``index``.
                Leaving the iterator early aborts what is unfinished.
            rid: your id of the request (one per prompt), else a random one.
            custom_logit_processor: a :class:`~rootlet.CustomLogitProcessor` (or its ``to_str()``), or any
                callable that takes and returns logits, for all prompts or one per prompt; it sees the
                ``custom_params`` of each request's sampling parameters.
            return_hidden_states: also return the hidden states behind every token, in ``meta_info``; default:
                the engine's option of that name.
            session_params: continue a session of :meth:`open_session`: a dict with ``id`` and, as needed,
                ``rid``, ``offset``, ``replace`` (:class:`~rootlet.engine.requests.sessions.SessionParams`).
            input_embeds: the prompt as vectors ``[tokens, hidden_size]`` (tensor, array or lists) that stand
                in place of the embeddings of tokens, or a list of such prompts.
            progress: show a bar that counts finished requests; not with ``stream``.

        Returns: a :class:`~rootlet.RequestOutput`, or a list in order (``index = prompt * n + sample``)
        when a list was passed or ``n > 1``.

        Raises InvalidRequestError, RequestTooLongError, InvalidParameterError or UnknownOptionError for a bad
        request (before anything runs); EngineClosedError, EngineFailedError.
        """
        args = GenerateArgs(
            prompt, sampling_params, input_ids, return_logprob, logprob_start_len, top_logprobs_num,
            return_text_in_logprobs, stream, rid, custom_logit_processor, return_hidden_states,
            session_params, input_embeds,
        )  # fmt: skip
        return self._calls.run(args, progress)

    @_named
    async def async_generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: Any = None,
        input_ids: list[int] | list[list[int]] | None = None,
        return_logprob: bool | list[bool] = False,
        logprob_start_len: int | list[int] | None = None,
        top_logprobs_num: int | list[int] | None = None,
        *,
        return_text_in_logprobs: bool = False,
        stream: bool = False,
        rid: str | list[str] | None = None,
        custom_logit_processor: Any = None,
        return_hidden_states: bool | list[bool] | None = None,
        session_params: dict[str, Any] | list[dict[str, Any]] | None = None,
        input_embeds: Any = None,
        progress: bool = False,
    ) -> Any:
        """:meth:`generate` for a running event loop, which is never blocked by the model.

        ``await`` gives the result, or with ``stream=True`` an async iterator of cumulative outputs.
        Cancelling the awaiting task aborts its requests.
        """
        args = GenerateArgs(
            prompt, sampling_params, input_ids, return_logprob, logprob_start_len, top_logprobs_num,
            return_text_in_logprobs, stream, rid, custom_logit_processor, return_hidden_states,
            session_params, input_embeds,
        )  # fmt: skip
        return await self._calls.run_async(args, progress)

    @_named
    def chat(
        self,
        messages: Any,
        sampling_params: Any = None,
        *,
        tools: Any = None,
        tool_choice: Any = None,
        response_format: Any = None,
        stream: bool = False,
        return_logprob: bool = False,
        top_logprobs_num: int | None = None,
        rid: str | list[str] | None = None,
        custom_logit_processor: Any = None,
        progress: bool = False,
    ) -> Any:
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
        options = ChatOptions.read(tools, tool_choice, response_format)
        plan = ChatPlan(self.chat_renderer, messages, sampling_params, options)
        outputs = self.generate(
            **plan.arguments, return_logprob=return_logprob, top_logprobs_num=top_logprobs_num, stream=stream,
            rid=rid, custom_logit_processor=custom_logit_processor, progress=progress,
        )  # fmt: skip
        return plan.iterate(outputs) if stream else plan.collect(outputs)

    @_named
    async def async_chat(
        self,
        messages: Any,
        sampling_params: Any = None,
        *,
        tools: Any = None,
        tool_choice: Any = None,
        response_format: Any = None,
        stream: bool = False,
        return_logprob: bool = False,
        top_logprobs_num: int | None = None,
        rid: str | list[str] | None = None,
        custom_logit_processor: Any = None,
        progress: bool = False,
    ) -> Any:
        """:meth:`chat` for a running event loop; with ``stream=True`` ``await`` gives an async iterator."""
        options = ChatOptions.read(tools, tool_choice, response_format)
        plan = await beside_loop(
            count_chars(messages), ChatPlan, self.chat_renderer, messages, sampling_params, options
        )
        outputs = await self.async_generate(
            **plan.arguments, return_logprob=return_logprob, top_logprobs_num=top_logprobs_num, stream=stream,
            rid=rid, custom_logit_processor=custom_logit_processor, progress=progress,
        )  # fmt: skip
        return plan.iterate_async(outputs) if stream else plan.collect(outputs)

    @_named
    def submit(
        self,
        prompt: str | None = None,
        sampling_params: Any = None,
        input_ids: list[int] | None = None,
        return_logprob: bool = False,
        logprob_start_len: int | None = None,
        top_logprobs_num: int | None = None,
        *,
        return_text_in_logprobs: bool = False,
        stream: bool = True,
        rid: str | None = None,
        custom_logit_processor: Any = None,
        return_hidden_states: bool | None = None,
        session_params: dict[str, Any] | None = None,
        input_embeds: Any = None,
    ) -> RequestHandle:
        """Start one request and return at once with its handle.

        Arguments as in :meth:`generate`, for a single prompt with ``n=1``. With ``stream=False`` the handle
        sees the final output only, which costs the engine less.
        """
        args = GenerateArgs(
            prompt, sampling_params, input_ids, return_logprob, logprob_start_len, top_logprobs_num,
            return_text_in_logprobs, stream, rid, custom_logit_processor, return_hidden_states,
            session_params, input_embeds,
        )  # fmt: skip
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

    @_named
    def encode(
        self,
        prompt: str | list[str] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        *,
        rid: str | list[str] | None = None,
        progress: bool = False,
    ) -> EmbeddingOutput | list[EmbeddingOutput]:
        """Embed one text or many: of an embedding model, or any with ``is_embedding=True``.

        Arguments as in :meth:`generate`. The embedding is the state of the last token after the final norm,
        of length 1; of a model with labels it is their scores.

        Raises InvalidRequestError if the engine generates text, else as :meth:`generate`.
        """
        return self._calls.run(GenerateArgs.for_embedding(prompt, input_ids, rid), progress)

    @_named
    async def async_encode(
        self,
        prompt: str | list[str] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        *,
        rid: str | list[str] | None = None,
        progress: bool = False,
    ) -> EmbeddingOutput | list[EmbeddingOutput]:
        """:meth:`encode` for a running event loop."""
        return await self._calls.run_async(GenerateArgs.for_embedding(prompt, input_ids, rid), progress)

    @_named
    def classify(
        self,
        prompt: str | list[str] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        *,
        rid: str | list[str] | None = None,
        progress: bool = False,
    ) -> EmbeddingOutput | list[EmbeddingOutput]:
        """Score one text or many with a classifier (``*ForSequenceClassification``) or reward model.

        ``out["embedding"]`` holds the logit of each label, of a reward model the reward. Arguments as in
        :meth:`generate`. Raises InvalidRequestError if the model has no labels, else as :meth:`encode`.
        """
        self._require_labels()
        return self.encode(prompt, input_ids, rid=rid, progress=progress)

    @_named
    async def async_classify(
        self,
        prompt: str | list[str] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        *,
        rid: str | list[str] | None = None,
        progress: bool = False,
    ) -> EmbeddingOutput | list[EmbeddingOutput]:
        """:meth:`classify` for a running event loop."""
        self._require_labels()
        return await self.async_encode(prompt, input_ids, rid=rid, progress=progress)

    def _require_labels(self) -> None:
        if not self._resolved.has_labels:
            raise InvalidRequestError(
                "classify() needs a model with labels (*ForSequenceClassification), and this one has none:"
                " use encode() for embeddings, generate() or score() for a language model."
            )

    def open_session(self, session_id: str | None = None) -> str:
        """Open a session, a conversation that later requests continue by ``session_params``; return its id.

        Raises InvalidRequestError if that id is open already.
        """
        self._loop.check_open()
        return self._sessions.open(session_id)

    def close_session(self, session_id: str) -> None:
        """Forget a session and abort what still runs of it. Raises InvalidRequestError if it is not open."""
        self._loop.check_open()
        self._sessions.close(session_id)

    # ---- control -----------------------------------------------------------------------------------

    def step(self) -> bool:
        """Run one step by hand; only with ``step_by_hand=True``. Returns whether there is more to do."""
        return self._loop.step()

    def flush_cache(self) -> bool:
        """Empty the prefix cache and forget compiled grammars.

        Returns False, with nothing done, while requests wait or run.
        """
        flushed = self._loop.call(_flush)
        if flushed:
            self._constraints.clear()
        return flushed

    def stats(self) -> EngineStats:
        """Counters and gauges: requests running and waiting, pages in use, tokens computed and cached."""
        return self._loop.call(collect)

    def start_profile(self, folder: str | Path = "profiles") -> None:
        """Begin to record what the engine's thread and the GPU do, until :meth:`stop_profile`.

        The profiler slows steps down; some twenty show all there is to see. Raises ProfileError while another
        profile runs.
        """
        self._loop.call(lambda core: self._profile.start(folder))  # noqa: ARG005

    def stop_profile(self) -> Path:
        """Stop recording; return the trace, a file for chrome://tracing or Perfetto. Raises ProfileError."""
        return self._loop.call(lambda core: self._profile.stop())  # noqa: ARG005

    def get_server_info(self) -> dict[str, object]:
        """All options, what was decided for those left open, and the sizes that follow from them."""
        return {
            **self.config.as_dict(),
            "status": "closed" if self._loop.is_closed else "ready",
            "version": __version__,
            **self._resolved.as_dict(),
        }

    # ---- lifetime ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop after the current step and free everything. Idempotent; waiters get EngineClosedError.

        In a done callback or a logit processor it returns at once, and the engine ends after the step.
        """
        self._finalizer.detach()
        self._loop.close()

    def shutdown(self) -> None:
        """Same as :meth:`close`, under the documented name."""
        self.close()

    def __enter__(self) -> Engine:
        self._loop.check_open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._loop.is_closed else str(self._resolved.device)
        return f"<rootlet.Engine {self.config.model_path!r} ({state})>"


def _flush(core: EngineCore) -> bool:
    if not core.is_idle:
        return False
    core.scheduler.cache.flush()
    return True
