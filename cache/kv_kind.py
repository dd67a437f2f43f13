"""Kinds of KV groups: who plans how the layers of a group read what they keep, step by step.

Attention over pages of keys and values is planned by the engine's backend. A group whose layers keep
something else, or read it in another way, brings a :class:`KVKind` of its own with the model's spec.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch


class StepRows(Protocol):
    """The R rows and T tokens of one step, as those who plan it see them: int32 arrays on the host.

    Rows of one token may come first; the others follow. Every length is known here before the step ahead is
    over; token ids are not.
    """

    @property
    def num_rows(self) -> int:
        """R."""

    @property
    def num_decodes(self) -> int:
        """Leading rows of one token."""

    @property
    def slots(self) -> np.ndarray:
        """[R], each row's row of the page table."""

    @property
    def starts(self) -> np.ndarray:
        """[R], position of each row's first token: what is kept of its sequence from earlier steps."""

    @property
    def counts(self) -> np.ndarray:
        """[R], tokens of each row in this step."""

    @property
    def kv_lens(self) -> np.ndarray:
        """[R], context of each row after the step, ``starts + counts``."""

    @property
    def q_starts(self) -> np.ndarray:
        """[R + 1], row r has the tokens ``q_starts[r] : q_starts[r + 1]``."""

    @property
    def token_slots(self) -> np.ndarray:
        """[T], ``slots`` of each token's row."""

    @property
    def positions(self) -> np.ndarray:
        """[T], index of each token in its sequence."""

    @property
    def page_tables(self) -> Sequence[Sequence[int]]:
        """[R], the pages of each row's sequence so far. The same list for as long as a sequence runs."""

    @property
    def token_tables(self) -> Sequence[Sequence[int]]:
        """[T], ``page_tables`` of each token's row."""


class Place(NamedTuple):
    """Where a recorded step reads an int32 array of a fixed shape; ``fill`` stands for nothing there."""

    shape: tuple[int, ...]
    fill: int = 0


class StepShape(NamedTuple):
    """What a recorded step has room for: tokens, leading rows of one token each, rows of any lengths."""

    num_tokens: int
    num_decodes: int
    num_others: int


class RecordedData(NamedTuple):
    """What a recorded step reads besides columns: arrays for ``places``, or shorter in their last dimension.

    Steps with another ``key`` are recorded apart.
    """

    key: int = 0
    arrays: tuple[np.ndarray, ...] = ()
    places: tuple[Place, ...] = ()


NO_DATA: Final = RecordedData()


class KVPlanner(ABC):
    """Plans the reading of one group's layers: once per step. What a plan is, is between it and the layers.

    It gets the page table when it is made. Plans of steps in flight hold beside each other.
    """

    @abstractmethod
    def plan(self, rows: StepRows) -> Any:
        """The plan for all T tokens of a step. Must not wait for the device."""

    @abstractmethod
    def plan_decodes(self, slots: torch.Tensor, kv_lens: torch.Tensor) -> Any:
        """The plan for rows of one token each, slots and contexts [B] int32 on the device.

        It is for the tokens of a step whose states somebody wants, beside the plan of all, and for recorded
        steps, where contents of both tensors change between replays. None if a step can have one plan only:
        then the last layer computes all tokens.
        """

    def recorded_data(self, rows: StepRows, size: int) -> RecordedData:  # noqa: ARG002
        """What a recorded step reads of these rows, one per token, padded to ``size``. Default: nothing."""
        return NO_DATA

    def plan_recorded(
        self,
        slots: torch.Tensor,
        kv_lens: torch.Tensor,
        data: Sequence[torch.Tensor],  # noqa: ARG002
    ) -> Any:
        """The plan of a step that is being recorded; ``data``: where each step's :class:`RecordedData` go."""
        return self.plan_decodes(slots, kv_lens)

    def recorded_rows(self, rows: StepRows, shape: StepShape) -> RecordedData | None:  # noqa: ARG002
        """What a recorded step of ``shape`` reads of these rows, of any lengths, which it has room for.

        None, the default: a step of such rows is launched kernel by kernel.
        """
        return None

    def plan_recorded_rows(self, data: Sequence[torch.Tensor]) -> Any:  # noqa: ARG002
        """The plan of such a step that is being recorded; ``data``: where each step's arrays go."""
        return None


class KVKind(ABC):
    """How the layers of a group read what they keep, where that is not attention over pages of k and v.

    A model hands such an object out with its spec (:attr:`KVGroup.kind`); nothing is registered. What it does
    not promise is not relied on: steps are then computed kernel by kernel, and options refused.
    """

    name: str
    """What messages call it."""

    can_record = False
    """Whether plans of :meth:`KVPlanner.plan_recorded` may be part of a CUDA graph."""

    is_batch_invariant = False
    """Whether a token is bitwise the same in any batch, chunk and page, which ``deterministic`` needs."""

    @abstractmethod
    def planner(self, pages: torch.Tensor, page_size: int) -> KVPlanner:
        """A planner for one engine's steps, on the device of ``pages``.

        ``pages`` [num_slots, max_pages] int32 says where the tokens of a sequence are: that at position p in
        page ``pages[slot, p // page_size]``, row ``p % page_size`` of it. Contents are up to date when a
        step's kernels run. Raises ModelError for a device that it does not know.
        """
