"""A built engine: its parts, the thread that owns them, what it tells of itself, and its end."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from ..errors import InvalidRequestError, short
from ..version import __version__
from .build.thread import build_on_thread
from .calls import Calls
from .config import EngineConfig
from .core import EngineCore
from .host import modes as host_modes
from .loop import EngineLoop
from .profiling import Profile
from .requests.factory import RequestFactory
from .requests.sessions import Sessions
from .stats import EngineStats, collect

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .options import EngineOptions


class BuiltEngine:
    """What :class:`~rootlet.Engine` is but for its calls."""

    def __init__(self, model_path: str | os.PathLike[str], **options: Unpack[EngineOptions]) -> None:
        self.config = EngineConfig.from_options(model_path, options)
        parts = build_on_thread(self.config)
        self.tokenizer = parts.tokenizer
        self.tokenizer_manager = SimpleNamespace(tokenizer=parts.tokenizer)  # where documented examples look
        self.chat_renderer = parts.chat_renderer  # messages to prompts
        self._resolved = parts.resolved
        self._model_config = parts.model_config
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
            kind=parts.resolved.kind,
            auto_truncate=self.config.allow_auto_truncate,
            constraints=parts.constraints,
            encoder=parts.encoder,
        )
        self._loop = EngineLoop(
            parts.core,
            parts.release,
            by_hand=self.config.step_by_hand,
            shielded=host_modes.shielded,
            readers_rest=parts.resolved.device.type == "cpu",
        )
        self._profile = Profile(parts.resolved.device)
        self._memory = parts.memory
        self._calls = Calls(self._factory, self._loop)
        # The loop refers to the core and never to this object, so this runs when the last reference goes. It
        # runs at interpreter exit as well: a thread stopped in the middle of a step would abort the process.
        self._finalizer = weakref.finalize(self, self._loop.close)

    # ---- sessions ----------------------------------------------------------------------------------

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

    def abort(self, rid: str | None = None) -> None:
        """End a request with what it has; without ``rid`` all of them, those that wait as well.

        Returns at once. Whoever waits for a request gets its output, reason "abort": its tokens so far, none
        of one that had not begun, and as many log-probabilities, masks and hidden states. ``generate`` goes
        on from it by ``continue_from``; nothing goes on by itself, or happens if no request has that id.

        Raises InvalidRequestError if ``rid`` is no string; EngineClosedError, EngineFailedError.
        """
        if rid is not None and not isinstance(rid, str):
            raise InvalidRequestError(
                f"abort takes the rid of one request, or nothing for all of them, got {short(rid)}."
            )
        self._loop.check_open()
        self._loop.abort(rid)

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

    def __enter__(self) -> Self:
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
