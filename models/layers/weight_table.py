"""Loading a stream of named tensors into a model, with every name accounted for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import torch
from torch import Tensor

from .load_record import LoadRecord
from .names import USUAL_NAMES, Names
from .slots import NamedSlots, Slot, stores_of
from .storage import Room, lay_out, total_bytes
from .weight_names import match_names, unwrapped
from .weight_update import TensorSpec, UpdatePlan

_logger = logging.getLogger("rootlet.models")

IGNORED_SUFFIXES: Final = (
    "rotary_emb.inv_freq",  # buffers of old Llama checkpoints: recomputed from the config
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "attn.masked_bias",  # a constant of old attention masks
)
"""Endings of checkpoint names that carry no weight and may be present in any family."""


class WeightTable:
    """All slots of a model by checkpoint name.

    ``tied`` maps a name that may be absent to the name whose slot it shares. ``ignored`` are
    endings of names without meaning, added to :data:`IGNORED_SUFFIXES`. ``names`` are the family's.
    """

    def __init__(
        self,
        slots: NamedSlots,
        tied: Mapping[str, str],
        ignored: tuple[str, ...] = (),
        names: Names = USUAL_NAMES,
    ) -> None:
        self._names = names
        self._slots = dict(slots)
        self._tied = dict(tied)
        self._ignored = IGNORED_SUFFIXES + ignored
        self._last_plan: tuple[object, UpdatePlan] | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor that a complete checkpoint has, by name; tied names left out."""
        return {name: slot.shape for name, slot in self._slots.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The type that each of these tensors is kept in."""
        return {name: slot.dtype for name, slot in self._slots.items()}

    @property
    def nbytes(self) -> int:
        """Bytes held by all weights, shared ones counted once."""
        return sum(store.nbytes for store in stores_of(self._slots.items()))

    def move(self, allocate: Callable[[int], Tensor]) -> None:
        """Before a load: have all stores in one piece of memory, ``allocate(bytes)``, rows as they are."""
        stores = stores_of(self._slots.items())
        with torch.inference_mode(False):
            for store, memory in zip(stores, lay_out(allocate(total_bytes(stores)), stores)):
                store.move(Room(memory, memory))

    @property
    def tensors(self) -> list[Tensor]:
        """What all values lie in, however they lie."""
        return [tensor for store in stores_of(self._slots.items()) for tensor in store.tensors]

    def get(self, name: str) -> Tensor | None:
        """The tensor of a checkpoint name, also a tied one; None if unknown or not loaded."""
        slot = self._slots.get(self._tied.get(name, name))
        return None if slot is None else slot.get()

    def load(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Load a complete checkpoint, in any order, one tensor at a time.

        Raises WeightsError about every missing, leftover, duplicate or misshapen tensor at once, naming the
        first of many; the model is then not usable until a load succeeds. Where ``named`` has ``shapes``, as
        :func:`~rootlet.models.loader.checkpoint.named_tensors` gives it, that is before the first tensor is
        read, and the names of wrapped or bare models are translated.
        """
        shapes = getattr(named, "shapes", None)
        if shapes is not None:
            rename = match_names(shapes, self._slots, self._names)
            if rename is not None:
                _logger.info("The names of the weights are translated: %s.", _example(shapes, rename))
                named = ((rename(name), tensor) for name, tensor in named)
                shapes = {rename(name): shape for name, shape in shapes.items()}
            self._check(shapes)
        record = LoadRecord()
        # Weights must be ordinary tensors whatever mode the caller is in: an inference tensor could
        # not be updated outside of it, and a parameter would bring its autograd history along.
        with torch.inference_mode(False), torch.no_grad():
            try:
                for name, tensor in named:
                    self._load_one(name, tensor, record)
                    record.seen.add(name)
            finally:
                for store in stores_of(self._slots.items()):
                    store.finish()
        record.raise_problems(self._slots)

    def plan_update(
        self, specs: Mapping[str, TensorSpec], *, partial: bool, translate: bool = False
    ) -> UpdatePlan:
        """Where tensors of these names go, of weights that were loaded before.

        Unless ``partial``, they must be all. ``translate``: names of wrapped or bare models will do, as in
        :meth:`load`. Raises WeightsError about everything that is wrong with them.
        """
        asked = (dict(specs), partial, translate)
        if self._last_plan is not None and self._last_plan[0] == asked:  # a trainer's next step
            return self._last_plan[1]
        rename = match_names(specs, self._slots, self._names) if translate else None
        ours = {name: name if rename is None else rename(name) for name in specs}
        record = LoadRecord()
        slots: dict[str, Slot] = {}
        tied: dict[str, str] = {}
        theirs = {inner: name for name, inner in ours.items()}
        for name, spec in specs.items():
            inner = ours[name]
            source = self._find(inner, spec.shape, spec.dtype, record)
            if source is None:
                continue
            record.filled.add(source)
            if inner != source and source in theirs:
                tied[name] = theirs[source]
            else:
                slots[name] = self._slots[source]
        record.raise_problems(() if partial else self._slots, self._advice(record))
        plan = UpdatePlan(slots, tied, record.filled)
        self._last_plan = (asked, plan)
        return plan

    def _advice(self, record: LoadRecord) -> str:
        """How to mend an update."""
        for name in record.leftover:
            inner = unwrapped(name, {*self._slots, *self._tied})
            if inner is not None:
                return f"Did you mean {inner}? {name} is its name in a wrapper: give what is wrapped."
        return "Nothing was changed. An update of some weights alone needs partial=True."

    def _check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise WeightsError if tensors of these names and shapes are not what the model needs."""
        record = LoadRecord()
        for name, shape in shapes.items():
            source = self._find(name, shape, None, record)
            if source is not None:
                record.filled.add(source)
        record.raise_problems(self._slots)

    def _find(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None, record: LoadRecord
    ) -> str | None:
        """The name of the slot for a tensor; None after noting why there is none. A None ``dtype`` fits."""
        source = self._tied.get(name, name)
        slot = self._slots.get(source)
        if slot is None:
            if not name.endswith(self._ignored):
                record.leftover.append(name)
        elif name in record.seen:
            record.duplicate.append(name)
        elif tuple(shape) != slot.shape or not (dtype is None or slot.accepts(dtype)):
            got = f"{dtype or ''} {list(shape)}".strip()
            kind = "floating point" if slot.dtype.is_floating_point else slot.dtype
            record.misshapen.append(f"{name} is {got}, expected {kind} {list(slot.shape)}")
            record.refused.add(source)
        else:
            return source
        return None

    def _load_one(self, name: str, tensor: Tensor, record: LoadRecord) -> None:
        """Load one tensor, or note why not."""
        source = self._find(name, tuple(tensor.shape), tensor.dtype, record)
        if source is None:
            return
        slot = self._slots[source]
        if source in record.filled:
            _load_second(name, tensor, slot, wins=name == source)
        else:
            slot.load(tensor)
            record.filled.add(source)


def _example(shapes: Mapping[str, tuple[int, ...]], rename: Callable[[str], str]) -> str:
    name = next(name for name in shapes if rename(name) != name)
    return f"{name} to {rename(name)}"


def _load_second(name: str, tensor: Tensor, slot: Slot, *, wins: bool) -> None:
    """Load the second tensor of a tied pair, which replaces the first only if it ``wins``.

    Checkpoints that keep both normally keep the same values twice. Where they differ, the config
    contradicts the checkpoint: transformers 4 ties all the same, as we do, transformers 5 does not.
    """
    stored = slot.get()
    assert stored is not None  # the first of the pair has come
    if torch.equal(stored, tensor.to(stored.device, stored.dtype)):
        return
    _logger.warning(
        "%s differs from the tensor that tie_word_embeddings makes the same weight; %s. If both are meant, "
        "override the config with {'tie_word_embeddings': false}.",
        name,
        "it is used for both" if wins else "it is ignored",
    )
    if wins:
        slot.load(tensor)
