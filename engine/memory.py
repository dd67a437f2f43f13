"""Giving an engine's memory to somebody else for a while: what of it is there, and what that allows.

=============  ======================================  =========================================
tag            what                                    while it is released
=============  ======================================  =========================================
"weights"      the model's weights                     requests are refused
"kv_cache"     the KV pool and tables of its pages     requests are refused; no prefix is cached
"cuda_graph"   recorded steps and buffers of steps     steps are launched kernel by kernel
=============  ======================================  =========================================

Weights that were discarded are lost until :meth:`EngineMemory.weights_came` for each of them; until then
requests are refused by WeightsError, whatever has been taken back. All addresses stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, get_args

from ..errors import (
    ConfigError,
    InvalidParameterError,
    InvalidRequestError,
    RootletError,
    WeightsError,
    short,
)
from ..models.fields import list_names

if TYPE_CHECKING:
    from .core import EngineCore

Tag: TypeAlias = Literal["weights", "kv_cache", "cuda_graph"]
Tags: TypeAlias = "Iterable[Tag] | Tag | None"
Keep: TypeAlias = Literal["discard", "host"]

TAGS: tuple[Tag, ...] = get_args(Tag)
_NEEDED = ("weights", "kv_cache")  # to compute anything
_NAMED = 8  # requests, in a refusal


@dataclass(frozen=True)
class MemoryReport:
    """What a call has given back or taken.

    Attributes:
        freed: bytes of the device, or of the host where that computes, that were given back; those that
            were taken count negative.
        by_tag: the same, of each tag that the call had to do with.
        held: bytes that each tag has now. Of "cuda_graph" on a GPU: recordings and buffers, without what
            torch's allocator caches, which a release gives back too.
    """

    freed: int
    by_tag: Mapping[Tag, int]
    held: Mapping[Tag, int]


class Releasable(Protocol):
    """Memory that is there or not."""

    def held(self) -> int:
        """Bytes that it has now."""

    def release(self, *, keep: bool = False) -> int:
        """Give them back, which of them may come back with their values if told to ``keep`` them."""

    def resume(self) -> int:
        """Take them again; how many. Raises DeviceMemoryError, and may be tried again."""

    def close(self) -> None:
        """Let go of everything."""


class EngineMemory:
    """The memory of one engine by tag.

    On the thread that owns the core, but for :meth:`refusal` and the properties.

    Args:
        parts: the memory of each tag.
        weight_names: of all weights.
        impossible: why nothing can be released here, None if it can.
    """

    def __init__(
        self,
        parts: Mapping[Tag, Releasable],
        weight_names: Callable[[], Iterable[str]] = lambda: (),
        impossible: str | None = None,
    ) -> None:
        self._parts = dict(parts)
        self._weight_names = weight_names
        self._impossible = impossible
        self._released: frozenset[Tag] = frozenset()
        self._lost: frozenset[str] | None = None  # weights without values, by name
        self._borrowed: list[tuple[Tag, str]] = []

    @property
    def released(self) -> frozenset[Tag]:
        """What is not there now."""
        return self._released

    @property
    def has_weights(self) -> bool:
        """Whether weights can be read: they are there, and their values too."""
        return self._lost is None and "weights" not in self._released

    def check(self) -> None:
        """Raise what :meth:`refusal` gives, if it gives anything."""
        refused = self.refusal()
        if refused is not None:
            raise refused

    def check_weights(self) -> None:
        """The same, where somebody wants to read weights and needs nothing else."""
        if not self.has_weights:
            self.check()

    def refusal(self) -> RootletError | None:
        """Why no request may be computed now; None if one may."""
        lacking = [tag for tag in _NEEDED if tag in self._released]
        resume = f"call resume_memory({lacking}) first" if lacking else ""
        if self._lost is not None:
            push = f"{resume}, then push weights" if lacking else "push weights first"
            missing = f"Missing ({len(self._lost)}): {list_names(sorted(self._lost))}."
            return WeightsError(
                f"The engine's weights were discarded by release_memory(): {push}. {missing}"
                " release_memory(weights='host') keeps them."
            )
        if lacking:
            return InvalidRequestError(
                f"The engine's memory of {' and '.join(lacking)} is released: {resume}."
            )
        return None

    def release(self, core: EngineCore, tags: Tags = None, weights: Keep = "discard") -> MemoryReport:
        """Give memory back. What is released already stays so.

        Raises InvalidParameterError for other tags or modes, InvalidRequestError while there are requests or
        somebody uses what is to be released, ConfigError if nothing can be released here, DeviceMemoryError
        if the system refuses; what was released until then comes back by :meth:`resume`.
        """
        chosen = read_tags(tags)
        if weights not in get_args(Keep):
            raise InvalidParameterError(f"weights must be 'discard' or 'host', got {short(weights)}.")
        if self._impossible is not None:
            raise ConfigError(self._impossible)
        due = [tag for tag in chosen if tag not in self._released]
        freed = dict.fromkeys(chosen, 0)
        if due:
            self._check_idle(core, due)
            core.stop("keep")  # ends a step that nobody waits for any more
            try:
                for tag in due:
                    freed[tag] = self._release(core, tag, keep=weights == "host")
            finally:
                core.go_on()
        return self._report(freed)

    def resume(self, core: EngineCore, tags: Tags = None) -> MemoryReport:
        """Take memory back, where it was. What is there already stays as it is.

        Raises InvalidParameterError for other tags, and DeviceMemoryError where too little is free: what was
        taken until then stays, and the rest may be tried again.
        """
        chosen = read_tags(tags)
        taken = dict.fromkeys(chosen, 0)
        for tag in chosen:
            if tag in self._released:
                taken[tag] = -self._parts[tag].resume()
                self._mark(core, self._released - {tag}, self._lost)
                if tag == "cuda_graph":
                    core.get_ready_again()
        return self._report(taken)

    def weights_came(self, core: EngineCore, names: Iterable[str] | None = None) -> None:
        """These weights have values again, None: all of them. :meth:`resume` came first."""
        if "weights" in self._released:
            raise AssertionError("Weights are loaded into memory that is there: resume() comes first.")
        left = frozenset() if names is None or self._lost is None else self._lost.difference(names)
        self._mark(core, self._released, left or None)

    def borrow(self, tag: Tag, refusal: str) -> bool:
        """Keep a tag from being released until :meth:`give_back`; False if it is released now.

        ``refusal``: what is said to whoever wants to release it meanwhile.
        """
        if tag in self._released:
            return False
        self._borrowed.append((tag, refusal))
        return True

    def give_back(self, tag: Tag, refusal: str) -> None:
        """End a :meth:`borrow` of the same arguments."""
        self._borrowed.remove((tag, refusal))

    def close(self) -> None:
        """Let go of everything."""
        for part in self._parts.values():
            part.close()
        self._parts = {}

    def _release(self, core: EngineCore, tag: Tag, *, keep: bool) -> int:
        if tag == "kv_cache":
            core.scheduler.cache.flush()
        keep = keep and self._lost is None
        lost = self._lost
        if tag == "weights" and not keep:
            lost = frozenset(self._weight_names())
        # before it happens: what fails on the way leaves nothing that could be taken for values
        self._mark(core, self._released | {tag}, lost)
        return self._parts[tag].release(keep=tag == "weights" and keep)

    def _check_idle(self, core: EngineCore, due: Iterable[Tag]) -> None:
        rids = core.rids
        if rids:
            more = f" and {len(rids) - _NAMED} more" if len(rids) > _NAMED else ""
            raise InvalidRequestError(
                f"Memory is released while there are no requests; {len(rids)} run or wait: "
                f"{', '.join(map(short, rids[:_NAMED]))}{more}. Wait for them, or abort them."
            )
        for tag, refusal in self._borrowed:
            if tag in due:
                raise InvalidRequestError(refusal)

    def _mark(self, core: EngineCore, released: frozenset[Tag], lost: frozenset[str] | None) -> None:
        """Remember a state. The core stands still as long as it cannot compute."""
        could = self.refusal() is None
        self._released, self._lost = released, lost
        can = self.refusal() is None
        if could and not can:
            core.stop("keep")
        elif can and not could:
            core.go_on()

    def _report(self, freed: Mapping[Tag, int]) -> MemoryReport:
        held = {tag: part.held() for tag, part in self._parts.items()}
        return MemoryReport(sum(freed.values()), dict(freed), held)


class StepMemory:
    """What a runner keeps from step to step, as :class:`Releasable`: it comes back as it is needed.

    ``give_back`` returns to the system what torch has cached of it, and says how many bytes that were.
    """

    def __init__(self, runner: StepKeeper, give_back: Callable[[], int]) -> None:
        self._runner: StepKeeper | None = runner
        self._give_back = give_back

    def held(self) -> int:
        """Bytes of recordings and buffers."""
        return 0 if self._runner is None else self._runner.step_nbytes

    def release(self, *, keep: bool = False) -> int:  # noqa: ARG002
        """Forget them."""
        assert self._runner is not None
        before = self.held()
        self._runner.forget_steps()
        return max(self._give_back(), before - self.held())

    def resume(self) -> int:
        """Nothing is there before it is recorded."""
        assert self._runner is not None
        self._runner.record_steps()
        return 0

    def close(self) -> None:
        """Let go of the runner."""
        self._runner = None


class StepKeeper(Protocol):
    """A runner, as far as it keeps anything."""

    @property
    def step_nbytes(self) -> int:
        """Bytes that are kept from step to step."""

    def forget_steps(self) -> None:
        """Let them go."""

    def record_steps(self) -> None:
        """They may come back."""


def read_tags(tags: Tags) -> list[Tag]:
    """The tags, in the order in which memory is given and taken. Raises InvalidParameterError for others."""
    if tags is None:
        return [*TAGS]
    named = [tags] if isinstance(tags, str) else [*tags] if isinstance(tags, Iterable) else [tags]
    unknown = [tag for tag in named if tag not in TAGS]
    if unknown:
        raise InvalidParameterError(
            f"tags must be of {', '.join(map(repr, TAGS))}, or None for all of them; got"
            f" {', '.join(map(short, unknown[:_NAMED]))}."
        )
    return [tag for tag in TAGS if tag in named]
