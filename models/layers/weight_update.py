"""Updating the weights of a model that has some: everything is checked first, then only copied.

A plan says where each tensor of an update goes. Where a name's values lie as the checkpoint has them, that is
a view of the memory, and many tensors are copied at once; elsewhere (panels, rotary pairs) the slot takes
them. No address changes, so recorded steps stay valid.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ...errors import WeightsError
from .slots import Slot, stores_of

_LARGE = 4 << 20  # bytes


class TensorSpec(NamedTuple):
    """What is known of a tensor before it comes; ``dtype`` None: not that."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None


class UpdatePlan:
    """Where checked tensors go.

    Args:
        slots: what each name fills; names that carry no weight are not in it.
        tied: names that bring what another name of the update brings too.
        filled: the model's own names of what is filled.
    """

    def __init__(self, slots: Mapping[str, Slot], tied: Mapping[str, str], filled: Iterable[str]) -> None:
        self._slots = slots
        self._tied = tied
        self._stores = stores_of(slots.items())
        sizes = [math.prod(slot.shape) * slot.dtype.itemsize for slot in slots.values()]
        self._mean_bytes = sum(sizes) // max(len(sizes), 1)
        self._views: dict[str, Tensor] = {}  # of names whose memory is there: it never moves
        self.names: Final = frozenset((*slots, *tied))
        """Of the tensors that are wanted."""
        self.filled: Final = frozenset(filled)
        """The model's own names of what has new values then."""

    def dtype(self, name: str) -> torch.dtype:
        """The type that a tensor's values are kept in."""
        return self._slots[self._tied.get(name, name)].dtype

    def view(self, name: str) -> Tensor | None:
        """The memory of a wanted tensor in the checkpoint's layout; None where it is kept in another."""
        return self._slots[self._tied.get(name, name)].view()

    def check_ties(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise WeightsError if names that are the same weight bring different values."""
        for name, source in self._tied.items():
            if not _are_equal(tensors[name], tensors[source], self.dtype(source)):
                raise WeightsError(
                    f"{name} and {source} are one weight in this model (tie_word_embeddings), and the update"
                    f" has different values for them. Leave {name} out, or build the engine with"
                    ' json_model_override_args={"tie_word_embeddings": false}.'
                )

    def write(self, named: Iterable[tuple[str, Tensor]]) -> int:
        """Copy the tensors to where they stay; returns the bytes written.

        All of them stay as they are until it returns, so that many are copied at once. Copies may be under
        way on the current stream then.
        """
        # Large tensors keep a GPU longer than the host needs to begin with the next: those go at once.
        in_groups = self._mean_bytes < _LARGE
        groups: defaultdict[tuple, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        written = 0
        with torch.inference_mode(False), torch.no_grad():
            try:
                for name, tensor in named:
                    slot = self._slots.get(name)
                    if slot is None:
                        continue
                    view = self._views.get(name)
                    if view is None:
                        view = slot.view()
                        if view is not None:
                            self._views[name] = view
                    written += tensor.numel() * slot.dtype.itemsize
                    if view is None:
                        slot.load(tensor)
                    elif not in_groups:
                        view.copy_(tensor, non_blocking=True)
                    else:
                        targets, sources = groups[view.device, view.dtype, tensor.device, tensor.dtype]
                        targets.append(view)
                        sources.append(tensor)
                for targets, sources in groups.values():
                    torch._foreach_copy_(targets, sources, non_blocking=True)
            finally:
                for store in self._stores:
                    store.finish()
        return written


def _are_equal(first: Tensor, second: Tensor, dtype: torch.dtype) -> bool:
    same = first.device == second.device and first.data_ptr() == second.data_ptr()
    if same and first.dtype == second.dtype and first.stride() == second.stride():
        return True
    return torch.equal(first.to(dtype), second.to(first.device, dtype))
