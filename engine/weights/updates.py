"""Replacing the weights of an engine, one update at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ...errors import InvalidRequestError, WeightsError, short
from ..host.modes import shielded
from .ipc import open_handle
from .options import UpdateOptions, WeightUpdate
from .session import UpdateSession
from .source import Source, open_path, open_source, read_spec

if TYPE_CHECKING:
    from ...models.config import ModelConfig
    from ..loop import EngineLoop
    from ..memory import EngineMemory
    from .sharing import Sharing


class Updates:
    """All updates of an engine. Any thread may call but the engine's own; they take turns.

    ``turn``: held by whoever changes the weights.
    """

    def __init__(
        self,
        loop: EngineLoop,
        memory: EngineMemory,
        config: ModelConfig,
        dtype: torch.dtype,
        sharing: Sharing,
        turn: threading.Lock,
    ) -> None:
        self._loop = loop
        self._memory = memory
        self._sharing = sharing
        self._config = config
        self._dtype = dtype
        self._turn = turn

    def check(self) -> None:
        """Raise where an update could not be waited for, after the engine's end, and of shared weights."""
        self._loop.check_wait()
        self._loop.check_open()
        self._sharing.refuse_updates()

    def update(self, source: Any, expect: Mapping[str, Any] | None, options: UpdateOptions) -> WeightUpdate:
        """Take the weights of a source: see ``Engine.update_weights``."""
        self.check()
        if isinstance(source, (str, os.PathLike)):
            return self.take(self.open_path(source, expect=expect), options)
        with shielded():
            opened = open_source(source, expect)
        return self.take(opened, options)

    def open_path(
        self,
        path: str | os.PathLike[str],
        load_format: str = "auto",
        expect: Mapping[str, Any] | None = None,
    ) -> Source:
        """A checkpoint of this model. Raises ConfigError, ModelError or WeightsError."""
        return open_path(path, load_format, expect, self._config, self._dtype)

    def take(self, source: Source, options: UpdateOptions) -> WeightUpdate:
        """Make the tensors of a source the weights."""
        self.check()
        with self._turn, shielded():
            self._sharing.refuse_updates()  # since then somebody may have begun to
            session = UpdateSession(
                self._loop, self._memory, options, source.manifest, translate=source.is_checkpoint
            )
            return session.take(source) if source.held is None else session.write(source.held)

    @contextmanager
    def block(self, expect: Mapping[str, Any] | None, options: UpdateOptions) -> Iterator[UpdateBlock]:
        """Tensors are added within the block and become the weights at its end."""
        self.check()
        manifest = None if expect is None else {name: read_spec(name, spec) for name, spec in expect.items()}
        with self._turn:
            self._sharing.refuse_updates()
            session = UpdateSession(self._loop, self._memory, options, manifest)
            block = UpdateBlock(session)
            try:
                session.begin()
                yield block
                block.result = session.commit()
            finally:
                block.is_open = False
                session.close()

    def update_from_ipc(
        self, buckets: Iterable[Any], expect: Mapping[str, Any] | None, options: UpdateOptions
    ) -> WeightUpdate:
        """Take the weights in some buckets: see ``Engine.update_weights_from_ipc``."""
        with self.block(expect, options) as block:
            for bucket in buckets:
                if not isinstance(bucket, (tuple, list)) or len(bucket) != 2:
                    raise WeightsError(f"Buckets come as pairs of handle and entries, got {short(bucket)}.")
                block.add_ipc(*bucket)
        assert block.result is not None
        return block.result


class UpdateBlock:
    """What ``with engine.weight_update() as update`` gives.

    Attributes:
        result: what the update did, once the block has ended without an error.
    """

    def __init__(self, session: UpdateSession) -> None:
        self._session = session
        self.is_open = True
        self.result: WeightUpdate | None = None

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add one tensor, which may be overwritten as soon as this returns. Raises WeightsError."""
        self._check_open()
        with shielded():
            self._session.add(name, tensor)

    def add_bucket(self, buffer: torch.Tensor, entries: Iterable[Any]) -> None:
        """Add the tensors that lie in ``buffer`` [bytes] uint8. Raises WeightsError.

        ``entries``: a ``{"name", "dtype", "shape", "offset"}`` of each, ``offset`` in bytes.
        """
        self._check_open()
        with shielded():
            self._session.add_bucket(buffer, entries)

    def add_ipc(self, handle: Any, entries: Iterable[Any]) -> None:
        """Add the tensors in a buffer of another process, which may reuse it when this returns.

        ``handle``: what :func:`rootlet.ipc_handle` gave there (or ``reduce_tensor`` of
        torch.multiprocessing, perhaps pickled, or a tensor that one of its queues has brought);
        ``entries`` as in :meth:`add_bucket`. Raises WeightsError also for a buffer that cannot be opened.
        """
        self._check_open()
        with shielded():
            buffer = open_handle(handle)
            self._session.add_bucket(buffer, entries)
            if buffer.is_cuda:
                torch.cuda.current_stream(buffer.device).synchronize()

    def _check_open(self) -> None:
        if not self.is_open:
            raise InvalidRequestError("This update has ended: open another one with weight_update().")
