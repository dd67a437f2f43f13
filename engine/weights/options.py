"""How an update goes about it: its options, checked, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from ...errors import InvalidParameterError, short
from ..core import OnRunning
from ..schedule.versions import Label

Staging = Literal["auto", "kv", "host"]
"""Where tensors wait that do not stay. There is no ``none``: nothing leaves an engine without weights."""


@dataclass(frozen=True)
class WeightUpdate:
    """What an update did.

    Attributes:
        version: what the weights are called now.
        tensors, bytes: how many were written.
        seconds: from the call to its return.
        aborted: requests that were ended for it.
        pages_flushed: pages of the prefix cache that were dropped.
    """

    version: Label
    tensors: int
    bytes: int
    seconds: float
    aborted: int
    pages_flushed: int


@dataclass(frozen=True)
class UpdateOptions:
    """The options of ``update_weights``; see there. Raises InvalidParameterError."""

    version: Label | None = None
    partial: bool = False
    on_running: OnRunning = "abort"
    flush_cache: bool = True
    staging: Staging = "auto"
    check_finite: bool = False

    def __post_init__(self) -> None:
        check_choice("on_running", self.on_running, get_args(OnRunning))
        check_choice("staging", self.staging, get_args(Staging))
        for name in ("partial", "flush_cache", "check_finite"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise InvalidParameterError(f"{name} must be True or False, got {short(value)}.")
        if self.version is not None and (
            isinstance(self.version, bool) or not isinstance(self.version, (int, str))
        ):
            raise InvalidParameterError(
                f"version must be an integer, a string or None, got {short(self.version)}."
            )
        if self.on_running == "keep" and self.flush_cache:
            raise InvalidParameterError(
                "on_running='keep' goes on from keys and values that flush_cache=True would drop: pass"
                " flush_cache=False, or on_running='recompute'."
            )
        if self.staging == "kv" and not self.flush_cache:
            raise InvalidParameterError(
                "staging='kv' overwrites the KV pool: it needs flush_cache=True. Choose staging='host'."
            )

    @property
    def stages_in_pool(self) -> bool:
        """Whether the KV pool may be overwritten, as its contents are dropped anyway."""
        return self.flush_cache and self.staging != "host"

    def label_after(self, current: Label, num_updates: int) -> Label:
        """What the new weights are called, after ``current`` ones."""
        if self.version is None:
            return current + 1 if isinstance(current, int) else num_updates + 1
        if isinstance(self.version, int) and isinstance(current, int) and self.version <= current:
            raise InvalidParameterError(
                f"version={self.version} does not rise: the weights are at {current}. Pass a larger integer,"
                " a string, or None."
            )
        return self.version


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise InvalidParameterError unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        allowed = ", ".join(map(repr, choices))
        raise InvalidParameterError(f"{name} must be one of {allowed}, got {short(value)}.")
