"""Sessions: conversations kept by the engine, as trees of requests that continue from each other's context.

What a session saves is the caller's bookkeeping. Computation is saved by the prefix cache, which finds a
continued context by itself, session or not.
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import InvalidRequestError, short, unknown_option
from ...sampling.limits import MAX_ID_CHARS, check_count

if TYPE_CHECKING:
    from ..replies.handle import RequestHandle

_KEYS = ("id", "rid", "offset", "replace")


@dataclass(frozen=True)
class SessionParams:
    """Where a request stands in a session.

    Attributes:
        id: the session.
        rid: the request of the session to continue from; None starts from nothing.
        offset: how much of that request's context (prompt and output) to keep, as in ``context[:offset]``, so
            -1 leaves out the last token; None or 0 keep all.
        replace: drop what followed ``rid`` (everything, without ``rid``); what still runs of it is aborted.
    """

    id: str
    rid: str | None = None
    offset: int | None = None
    replace: bool = False

    @classmethod
    def parse(cls, given: Any) -> SessionParams | None:
        """From what a caller passed: a dict, an instance or None. A dict without ``id`` means no session."""
        if given is None or isinstance(given, cls):
            return given
        if not isinstance(given, dict):
            raise InvalidRequestError(
                f"session_params must be a dict, got {type(given).__name__}: {short(given)}."
            )
        for name in given:
            if name not in _KEYS:
                raise unknown_option("session parameter", str(name), _KEYS)
        kinds = {"id": (str,), "rid": (str,), "offset": (int,), "replace": (bool,)}
        for name, value in given.items():
            if value is not None and type(value) not in kinds[name]:
                raise InvalidRequestError(
                    f"session_params[{name!r}] must be {kinds[name][0].__name__} or None, got {short(value)}."
                )
        if given.get("id") is None:
            return None
        return cls(given["id"], given.get("rid"), given.get("offset"), bool(given.get("replace")))


@dataclass
class _Node:
    """One request of a session."""

    input_ids: list[int]
    handle: RequestHandle
    parent: str | None
    children: list[str] = field(default_factory=list)

    def context(self) -> list[int]:
        """Its prompt and what is known of its output."""
        output = self.handle.latest()
        if output is None:
            return self.input_ids
        reason = output.finish_reason
        # max_new_tokens=0 samples a token all the same, which is nobody's
        limit: Any = reason["length"] if reason is not None and reason["type"] == "length" else None
        return [*self.input_ids, *output.token_ids[:limit]]


@dataclass(frozen=True)
class Turn:
    """A request about to join a session."""

    sessions: Sessions
    params: SessionParams
    input_ids: list[int]

    def record(self, handle: RequestHandle) -> None:
        """Enter the submitted request; with ``replace`` drop what it replaces."""
        self.sessions.record(self, handle)


class Sessions:
    """The open sessions of an engine. Any thread may call."""

    def __init__(self, bos_token_id: int | None) -> None:
        self._bos_token_id = bos_token_id
        self._lock = threading.Lock()
        self._open: dict[str, dict[str, _Node]] = {}

    def open(self, session_id: str | None = None) -> str:
        """Open a session and return its id.

        Raises InvalidRequestError if that id is open already or no text, InvalidParameterError if it is long.
        """
        session_id = uuid.uuid4().hex if session_id is None else session_id
        if not isinstance(session_id, str) or not session_id:
            raise InvalidRequestError(f"A session's id must be a non-empty string, got {short(session_id)}.")
        check_count("The length of a session's id", len(session_id), MAX_ID_CHARS)
        with self._lock:
            if session_id in self._open:
                raise InvalidRequestError(f"Session {short(session_id)} is open already; choose another id.")
            self._open[session_id] = {}
        return session_id

    def close(self, session_id: str) -> None:
        """Forget a session and abort what still runs of it. Raises InvalidRequestError if it is not open."""
        with self._lock:
            nodes = self._nodes(session_id)
            del self._open[session_id]
        _abort(nodes.values())

    def extend(self, params: SessionParams, new_ids: list[int]) -> Turn:
        """The request that puts ``new_ids`` behind the context that ``params`` name.

        Raises InvalidRequestError if the session or the request to continue is not there, or is unfinished.
        """
        with self._lock:
            nodes = self._nodes(params.id)
            if params.rid is None:
                return Turn(self, params, new_ids)
            node = nodes.get(params.rid)
            if node is None:
                raise InvalidRequestError(
                    f"Invalid request: session {short(params.id)} has no request {short(params.rid)} to"
                    f" continue. It has {sorted(nodes) or 'none'}."
                )
            if not (node.handle.done() or params.replace):
                raise InvalidRequestError(
                    f"Invalid request: request {short(params.rid)} has not finished; wait for it, or"
                    " continue with replace=True, which aborts it."
                )
            context = node.context()
        if params.offset:
            context = context[: params.offset]
        if len(new_ids) > 1 and new_ids[0] == self._bos_token_id:
            new_ids = new_ids[1:]  # a text begins once
        return Turn(self, params, [*context, *new_ids])

    def record(self, turn: Turn, handle: RequestHandle) -> None:
        """Enter a submitted request into its session."""
        params = turn.params
        with self._lock:
            nodes = self._open.get(params.id)
            if nodes is None:  # closed since: the request runs, nobody continues it
                return
            dropped = self._drop(nodes, params) if params.replace else []
            nodes[handle.rid] = _Node(turn.input_ids, handle, params.rid)
            if params.rid is not None:
                nodes[params.rid].children.append(handle.rid)
        _abort(dropped)

    def _drop(self, nodes: dict[str, _Node], params: SessionParams) -> list[_Node]:
        """Remove what a replacing request drops; returns what is to be aborted."""
        if params.rid is None:
            dropped = list(nodes.values())
            nodes.clear()
            return dropped
        dropped, pending = [nodes[params.rid]], nodes[params.rid].children
        nodes[params.rid].children = []
        while pending:
            node = nodes.pop(pending.pop())
            dropped.append(node)
            pending.extend(node.children)
        return dropped

    def _nodes(self, session_id: str) -> dict[str, _Node]:
        if not isinstance(session_id, str) or session_id not in self._open:
            raise InvalidRequestError(
                f"Invalid request: session id {session_id!s:.100} does not exist."
                " Open it with open_session()."
            )
        return self._open[session_id]


def _abort(nodes: Any) -> None:
    for node in nodes:
        node.handle.abort()
