"""A group of processes in which one rank's tensors reach all others: a trainer and its engines.

It is none of torch.distributed's groups: no default group is needed or touched, nothing is registered and no
environment variable is read for it. On the wire it is what the others' ``init_custom_process_group`` makes of
``init_method="tcp://..."`` and the same name, so a trainer may as well use that.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Iterable
from typing import Any, Protocol

import torch
import torch.distributed as dist

from ..errors import ConfigError, InvalidParameterError, TransferError, short
from .gloo import GlooLink
from .nccl import NcclLink
from .waiting import Watch, first_line, interruptibly

_DEVICE_OF = {"gloo": "cpu", "nccl": "cuda"}


class Link(Protocol):
    """How tensors travel."""

    def broadcast(self, tensor: torch.Tensor, watch: Watch) -> None:
        """Fill a contiguous ``tensor`` with rank 0's values, or send them; returns when they are there."""

    def close(self) -> None:
        """Let go of the connections, at once."""


class WeightsGroup:
    """Joins a group of processes and waits until all ranks have come.

    Args:
        master_address, master_port: where rank 0 listens.
        rank, world_size: this process's place; rank 0 has the weights.
        group_name: the same in all ranks.
        backend: "nccl" (GPUs, one each) or "gloo" (values pass through host memory).
        timeout: seconds to wait for the ranks to come, and then for each tensor.
        device: with nccl, the GPU of this rank; default the current one.

    Raises InvalidParameterError, ConfigError for a backend that is not there, and TransferError if not all
    ranks come in time.
    """

    def __init__(
        self,
        master_address: str,
        master_port: int,
        rank: int,
        world_size: int,
        group_name: str = "weight_update_group",
        backend: str = "nccl",
        *,
        timeout: float = 300.0,
        device: torch.device | str | int | None = None,
    ) -> None:
        _check(master_address, master_port, rank, world_size, group_name, backend, timeout)
        self.name = group_name
        self.rank = rank
        self.backend = backend
        self.timeout = timeout
        self.turn = threading.Lock()  # all ranks broadcast in one order
        self._closed = False
        limit = datetime.timedelta(seconds=timeout)

        def connect() -> Link:
            store: Any = dist.TCPStore(
                master_address, master_port, world_size, rank == 0, limit, multi_tenant=True
            )
            for prefix in (group_name, f"{group_name}/", f"{_DEVICE_OF[backend]}/"):
                store = dist.PrefixStore(prefix, store)
            if backend == "nccl":
                return NcclLink(store, rank, world_size, torch.device("cuda" if device is None else device))
            return GlooLink(store, rank, world_size, limit)

        try:
            self._link = interruptibly(connect)
        except RuntimeError as error:
            raise TransferError(
                f"Not all of the {world_size} ranks of group {group_name!r} came to"
                f" {master_address}:{master_port} within {timeout:g} seconds ({first_line(error)}). Rank 0"
                " must listen there, all must give the same world_size, group_name and backend, and no two"
                " the same rank."
            ) from error

    @property
    def is_closed(self) -> bool:
        """True after :meth:`close`, or after a broadcast failed."""
        return self._closed

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send rank 0's values; in other ranks fill ``tensor``, which must have the same dtype and shape.

        Returns when they are there: they may then be read on the current stream, and rank 0's overwritten.
        Raises TransferError after ``timeout`` seconds or when a process is gone; the group cannot be used
        again then.
        """
        deadline = time.monotonic() + self.timeout

        def watch() -> None:
            if self._closed:
                raise TransferError(f"Group {self.name!r} was closed.")
            if time.monotonic() > deadline:
                raise TransferError(
                    f"A tensor was not broadcast in group {self.name!r} within {self.timeout:g} seconds: all"
                    " ranks must broadcast the same tensors in the same order."
                )

        watch()
        try:
            self._link.broadcast(tensor, watch)
        except BaseException:  # the ranks are out of step
            self.close()
            raise

    def send(self, tensors: Iterable[torch.Tensor | tuple[str, torch.Tensor]]) -> None:
        """:meth:`broadcast` each of some tensors, which may have names, as rank 0."""
        for one in tensors:
            self.broadcast((one[1] if isinstance(one, tuple) else one).detach())

    def close(self) -> None:
        """Leave the group; a broadcast that is under way ends with TransferError. Idempotent."""
        if not self._closed:
            self._closed = True
            self._link.close()


def _check(
    master_address: str,
    master_port: int,
    rank: int,
    world_size: int,
    group_name: str,
    backend: str,
    timeout: float,
) -> None:
    if not isinstance(master_address, str) or not master_address:
        raise InvalidParameterError(f"master_address must be a host's name, got {short(master_address)}.")
    if not _is_int(master_port) or not 0 < master_port < 2**16:
        raise InvalidParameterError(f"master_port must be from 1 to 65535, got {short(master_port)}.")
    if not _is_int(world_size) or world_size < 2:
        raise InvalidParameterError(
            f"world_size must be 2 or more, the sender and whoever receives, got {short(world_size)}."
        )
    if not _is_int(rank) or not 0 <= rank < world_size:
        raise InvalidParameterError(
            f"The rank must be from 0 to {world_size - 1} in a world of {world_size}, got {short(rank)}."
        )
    if not isinstance(group_name, str) or not group_name:
        raise InvalidParameterError(f"group_name must be a string, got {short(group_name)}.")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < 10**8:
        raise InvalidParameterError(f"timeout must be seconds above 0, got {short(timeout)}.")
    if backend not in _DEVICE_OF:
        raise InvalidParameterError(f"backend must be 'nccl' or 'gloo', got {short(backend)}.")
    if not dist.is_available() or (backend == "gloo" and not dist.is_gloo_available()):
        raise ConfigError(f"This torch was built without {backend}: use another backend.")
    if backend == "nccl" and not torch.cuda.is_available():
        raise ConfigError("backend='nccl' needs an NVIDIA GPU, and there is none here: use 'gloo'.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
