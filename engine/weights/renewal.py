"""The moment at which the weights become others: on the engine's thread, where nothing interrupts it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from .options import UpdateOptions, WeightUpdate
from .standstill import Standstill, stand_still_for

if TYPE_CHECKING:
    from ..core import EngineCore
    from ..loop import EngineLoop
    from ..memory import EngineMemory
    from ..schedule.versions import Label
    from ..steps.runner import ModelRunner


class Renewal:
    """Gives the weights their next version. Made when the call that does it begins.

    Raises InvalidParameterError if the version does not rise, and as ``EngineLoop.call``.
    """

    def __init__(self, loop: EngineLoop, memory: EngineMemory, options: UpdateOptions) -> None:
        self._began = time.monotonic()
        self._loop = loop
        self._memory = memory
        self._options = options
        self.runner: ModelRunner
        self._label: Label
        self.runner, self._label = loop.call(lambda core: (runner_of(core), _next_label(core, options)))

    def run(
        self,
        write: Callable[[], int],
        ready: Iterable[torch.cuda.Event],
        count: int,
        names: Iterable[str] | None = None,
        standstill: Standstill | None = None,
        num_flushed: int = 0,
    ) -> WeightUpdate:
        """``write()``, the bytes that it writes, while the engine stands still; then all is said to be new.

        Args:
            ready: what must have happened on other streams before.
            count: tensors that are written; ``names``: those that have values then, None: all weights.
            standstill: where the engine stands still already; ``num_flushed``: pages dropped for it.
        """
        flush = self._options.flush_cache

        def renew(core: EngineCore) -> tuple[int, int]:
            self._memory.resume(core, ["weights"])  # if they are released
            written = self.runner.write_weights(write, ready)
            self._memory.weights_came(core, names)
            core.renew_weights(self._label)
            return written, core.scheduler.cache.flush() if flush else 0

        on_running = self._options.on_running
        if standstill is not None:
            num_aborted, (written, flushed) = standstill.num_aborted, self._loop.call(renew)
        elif on_running == "finish":
            with Standstill(self._loop, on_running) as standstill:
                num_aborted, (written, flushed) = standstill.num_aborted, self._loop.call(renew)
        else:
            num_aborted, (written, flushed) = stand_still_for(self._loop, on_running, renew)
        seconds = time.monotonic() - self._began
        return WeightUpdate(self._label, count, written, seconds, num_aborted, num_flushed + flushed)


def marks(tensors: Iterable[torch.Tensor]) -> Sequence[torch.cuda.Event]:
    """What the calling thread has put in line so far on the current streams of these tensors' GPUs."""
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    return [torch.cuda.current_stream(device).record_event() for device in devices]


def runner_of(core: EngineCore) -> ModelRunner:
    """The runner of a built engine."""
    return core.runner  # type: ignore[return-value]  # of a built engine it is


def _next_label(core: EngineCore, options: UpdateOptions) -> Label:
    return options.label_after(core.weights_version, core.scheduler.num_updates)
