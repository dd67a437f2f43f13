"""Weights that a trainer broadcasts: the groups that an engine has joined, and updates through them."""

from __future__ import annotations

import collections
import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...errors import ConfigError, InvalidParameterError, RootletError, TransferError, WeightsError, short
from ...models.layers.weight_update import TensorSpec
from ...transfer.group import WeightsGroup
from .options import UpdateOptions, WeightUpdate
from .source import Named, Source, read_spec

if TYPE_CHECKING:
    from .updates import Updates

Specs = Sequence[tuple[str, torch.dtype, tuple[int, ...]]]


def read_specs(names: Any, dtypes: Any, shapes: Any) -> Specs:
    """What will be broadcast, in that order. Raises WeightsError for what says no size."""
    lists = [_listed(names), _listed(dtypes), _listed(shapes)]
    if not lists[0] or len({len(one) for one in lists}) > 1:
        counts = ", ".join(str(len(one)) for one in lists)
        raise WeightsError(f"names, dtypes and shapes must be equally long and not empty, got {counts}.")
    specs = []
    for name, dtype, shape in zip(*lists):
        spec = read_spec(name, (dtype, shape))
        if not isinstance(name, str) or spec.dtype is None or min(spec.shape, default=1) < 1:
            raise WeightsError(
                f"A tensor that is broadcast has a name, a dtype and sizes above 0, got {short(name)},"
                f" {short(dtype)}, {short(shape)}."
            )
        specs.append((name, spec.dtype, spec.shape))
    return specs


class Groups:
    """The groups that an engine is in, by name. Any thread may call but the engine's own."""

    def __init__(self, updates: Updates, device: torch.device) -> None:
        self._updates = updates
        self._device = device
        self._lock = threading.Lock()
        self._groups: dict[str, WeightsGroup | None] = {}  # None: its processes are being waited for

    def join(self, master_address: str, master_port: int, rank: int, world_size: int, name: str, backend: str,
             timeout: float) -> None:  # fmt: skip
        """Wait for all ranks. Raises as :class:`WeightsGroup`, and InvalidParameterError for a known name."""
        self._updates.check()
        if rank == 0:
            raise InvalidParameterError("rank_offset must be 1 or more: rank 0 is the trainer that sends.")
        if backend == "nccl" and self._device.type != "cuda":
            raise ConfigError(
                f"backend='nccl' is for GPUs, and this engine computes on {self._device}: use 'gloo'."
            )
        with self._lock:
            if name in self._groups:
                raise InvalidParameterError(
                    f"The group {short(name)} exists: call destroy_weights_update_group() first, or give"
                    " another group_name."
                )
            self._groups[name] = None
        group = None
        try:
            group = WeightsGroup(
                master_address, master_port, rank, world_size, name, backend,
                timeout=timeout, device=self._device if backend == "nccl" else None,
            )  # fmt: skip
        finally:
            with self._lock:
                if group is None:
                    self._groups.pop(name, None)
                elif name in self._groups:
                    self._groups[name] = group
                else:  # the engine was closed meanwhile
                    group.close()

    def leave(self, name: str) -> None:
        """Leave a group; what waits in it ends with TransferError. Raises as :meth:`receive`."""
        self._updates.check()
        self._drop(name, self._find(name))

    def receive(self, name: str, specs: Specs, options: UpdateOptions) -> WeightUpdate:
        """Take what rank 0 broadcasts as the new values of some weights.

        The engine goes on until the first tensor has come. Tensors that are refused are received all the
        same, so that trainer and engine stay in step; where one does not come, the group is left. Raises
        InvalidParameterError for an unknown group, TransferError, and as ``UpdateSession``.
        """
        self._updates.check()
        group = self._find(name)
        device = self._device if group.backend == "nccl" else torch.device("cpu")
        manifest = {name: TensorSpec(shape, dtype) for name, dtype, shape in specs}
        with group.turn:
            tensors = _broadcast(group, specs, device)
            try:
                begun = itertools.chain([next(tensors)], tensors)
                return self._updates.take(Source(begun, manifest=manifest), options)
            except RootletError:
                with contextlib.suppress(TransferError):
                    collections.deque(tensors, maxlen=0)
                self._updates.check()  # by close() the group ends too: say what ended
                raise
            except BaseException:  # out of step: an interrupt may strike between two tensors
                group.close()
                raise
            finally:
                if group.is_closed:
                    self._drop(name, group)

    def close(self) -> None:
        """Leave all groups. Any thread may call."""
        with self._lock:
            groups = list(self._groups.values())
            self._groups.clear()
        for group in groups:
            if group is not None:
                group.close()

    def _find(self, name: str) -> WeightsGroup:
        group = self._groups.get(name)
        if group is None:
            known = ", ".join(map(repr, self._groups)) or "none"
            raise InvalidParameterError(
                f"The group {short(name)} is not there ({known}): call init_weights_update_group() first. A"
                " group in which a tensor did not come has been left."
            )
        return group

    def _drop(self, name: str, group: WeightsGroup) -> None:
        group.close()
        with self._lock:
            if self._groups.get(name) is group:
                del self._groups[name]


def _broadcast(group: WeightsGroup, specs: Specs, device: torch.device) -> Iterator[Named]:
    """Each tensor as it comes; it stays the receiver's."""
    for name, dtype, shape in specs:
        try:
            tensor = torch.empty(shape, dtype=dtype, device=device)
        except RuntimeError as error:  # the trainer sends it all the same
            group.close()
            raise TransferError(f"There is no room to receive {name} {list(shape)}: {error}") from error
        group.broadcast(tensor)
        yield name, tensor
        del tensor  # before another is made


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise WeightsError(f"names, dtypes and shapes must be lists, got {short(value)}.")
    return list(value)
