"""What has come of the weights of a model so far, and everything that was wrong with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ...errors import WeightsError
from ..fields import list_names
from .weight_names import describe_foreign

_ADVICE = "Check that config.json belongs to this checkpoint and that the checkpoint is complete."


@dataclass
class LoadRecord:
    """What has come so far in one load: the slots filled, and what was wrong."""

    seen: set[str] = field(default_factory=set)  # names in the stream
    filled: set[str] = field(default_factory=set)  # names of slots
    refused: set[str] = field(default_factory=set)  # names of slots whose tensor did not fit
    leftover: list[str] = field(default_factory=list)
    duplicate: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def raise_problems(self, wanted: Iterable[str], advice: str = _ADVICE) -> None:
        """Raise one WeightsError about everything wrong, if anything is; ``advice`` is how to mend it."""
        accounted = self.filled | self.refused
        missing = [name for name in wanted if name not in accounted]
        problems = {
            "missing": missing,
            "leftover": self.leftover,
            "duplicate": self.duplicate,
            "misshapen": self.misshapen,
        }
        parts = [f"{kind} ({len(names)}): {list_names(names)}" for kind, names in problems.items() if names]
        if parts:
            owner = describe_foreign(self.leftover)
            if owner is not None:
                raise WeightsError(
                    f"The weights do not fit the model: their names are those of {owner}, which is not"
                    f" supported. {'; '.join(parts)}."
                )
            raise WeightsError(f"The weights do not fit the model; {'; '.join(parts)}. {advice}")
