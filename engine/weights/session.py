"""One update under way: tensors come, are kept aside, and become the weights together or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ...errors import WeightsError
from ...models.layers.weight_update import TensorSpec
from .buckets import read_bucket
from .options import UpdateOptions, WeightUpdate
from .renewal import Renewal, marks
from .staging import HostStage, PoolStage, Stage
from .standstill import Standstill
from .tensors import check_finite, check_tensors

if TYPE_CHECKING:
    from ...models.interface import Model, WeightPlan
    from ..core import EngineCore
    from ..loop import EngineLoop
    from ..memory import EngineMemory
    from .source import Source

_IN_POOL = (
    "An update of weights is under way, whose tensors wait in the KV pool: end it first, or choose"
    " staging='host' for it."
)


class UpdateSession:
    """The one update of an engine that is under way.

    Tensors are added one by one and may be overwritten as soon as :meth:`add` returns (on a GPU: by work that
    is put in line behind it on the same stream). Nothing changes before :meth:`commit`.

    Args:
        manifest: names that will come, with shape and perhaps dtype; None if that is not known.
    """

    def __init__(
        self,
        loop: EngineLoop,
        memory: EngineMemory,
        options: UpdateOptions,
        manifest: Mapping[str, TensorSpec] | None = None,
        *,
        translate: bool = False,
    ) -> None:
        self._loop = loop
        self._memory = memory
        self._options = options
        self._manifest = manifest
        self._translate = translate
        self._ending = contextlib.ExitStack()
        self._standstill: Standstill | None = None
        self._num_flushed = 0
        self._tensors: dict[str, torch.Tensor] = {}
        self._specs: dict[str, TensorSpec] = {}
        self._stage: Stage = HostStage()
        self._renewal = Renewal(loop, memory, options)
        self._runner = self._renewal.runner
        self._model: Model = self._runner.model
        if manifest is not None:  # everything that can be told before the first tensor comes
            self._plan(manifest)

    # ---- tensors that are there --------------------------------------------------------------------

    def write(self, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        """Make these the weights. They are checked first, so nothing but the copy itself can fail."""
        check_tensors(tensors.items())
        specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        if self._manifest is not None:
            _compare(self._manifest, specs)
        plan = self._plan(specs)
        plan.check_ties(tensors)
        if self._options.check_finite:
            check_finite(tensors.items())
        return self._commit(plan, tensors)

    # ---- tensors that come and go ------------------------------------------------------------------

    def begin(self) -> None:
        """Stand still from now on, if tensors are to be kept in the KV pool."""
        if self._options.stages_in_pool and self._runner.kv.data:
            self._ending.enter_context(self._stopped())
            if not self._loop.call(lambda core: self._memory.borrow("kv_cache", _IN_POOL)):  # noqa: ARG005
                return  # the pool is released: the host keeps what comes
            self._ending.callback(self._return_cache)
            self._num_flushed = self._loop.call(_flush)
            self._stage = PoolStage(self._runner.kv.data)
            self._ending.callback(self._clear, self._stage)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Keep a copy. Raises WeightsError for what is no weight, came already, or was not announced."""
        check_tensors([(name, tensor)])
        if name in self._specs:
            raise WeightsError(f"The update has {name} twice; nothing was changed.")
        self._specs[name] = spec = TensorSpec(tuple(tensor.shape), tensor.dtype)
        if self._manifest is not None:
            _compare({name: self._manifest[name]} if name in self._manifest else {}, {name: spec})
        if self._options.check_finite:
            check_finite([(name, tensor)])
        self._tensors[name] = self._stage.put(tensor.detach(), self._kept_as(name, tensor.dtype))

    def add_bucket(self, buffer: torch.Tensor, entries: Iterable[Any]) -> None:
        """Keep copies of the tensors that lie in ``buffer``: see :func:`~.buckets.read_bucket`."""
        for name, tensor in read_bucket(buffer, entries):
            self.add(name, tensor)

    def commit(self) -> WeightUpdate:
        """Make what was added the weights. Raises WeightsError, with nothing changed, if they do not fit."""
        if self._manifest is not None:
            _compare(self._manifest, self._specs)
        plan = self._plan(self._specs)
        plan.check_ties(self._tensors)
        return self._commit(plan, self._tensors)

    def close(self) -> None:
        """Let go of what was kept aside, and let the engine go on."""
        self._ending.close()
        self._tensors = {}

    def take(self, source: Source) -> WeightUpdate:
        """All tensors of a source that are not there yet, then :meth:`commit`."""
        try:
            self.begin()
            for name, tensor in source.tensors:
                self.add(name, tensor)
                del tensor  # it is good until the next is asked for
            return self.commit()
        finally:
            self.close()

    # ---- inside ------------------------------------------------------------------------------------

    def _plan(self, specs: Mapping[str, TensorSpec]) -> WeightPlan:
        return self._model.plan_update(specs, partial=self._options.partial, translate=self._translate)

    def _kept_as(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """The type to keep a tensor in: the one that it will have as a weight, so that it is rounded once."""
        kept = self._model.weight_dtypes.get(name, self._model.dtype)
        return kept if kept.is_floating_point and dtype.is_floating_point else dtype

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[None]:
        with Standstill(self._loop, self._options.on_running) as self._standstill:
            yield

    def _commit(self, plan: WeightPlan, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        names = plan.names
        wanted = {name: tensor for name, tensor in tensors.items() if name in names}
        return self._renewal.run(
            lambda: plan.write(wanted.items()),
            marks(wanted.values()),
            len(wanted),
            plan.filled if self._options.partial else None,
            self._standstill,
            self._num_flushed,
        )

    def _clear(self, stage: Stage) -> None:
        if not self._loop.is_closed:
            # where the source raised, copies into the pool may still be in line on the caller's stream
            runner, ready = self._runner, marks(self._runner.kv.data)
            self._loop.call(lambda core: runner.write_weights(stage.clear, ready))  # noqa: ARG005

    def _return_cache(self) -> None:
        if not self._loop.is_closed:
            self._loop.call(lambda core: self._memory.give_back("kv_cache", _IN_POOL))  # noqa: ARG005


def _compare(manifest: Mapping[str, TensorSpec], specs: Mapping[str, TensorSpec]) -> None:
    """Raise WeightsError unless what came is what was announced."""
    problems = [f"{name} was not announced" for name in specs if name not in manifest]
    for name, wanted in manifest.items():
        got = specs.get(name)
        if got is None:
            problems.append(f"{name} did not come")
        elif got.shape != wanted.shape or (wanted.dtype is not None and got.dtype != wanted.dtype):
            want = f"{wanted.dtype or 'any dtype'} {list(wanted.shape)}"
            problems.append(f"{name} is {got.dtype} {list(got.shape)}, announced was {want}")
    if problems:
        shown = "; ".join(problems[:10]) + (f" and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise WeightsError(f"The update is not what was announced, so nothing was changed: {shown}.")


def _flush(core: EngineCore) -> int:
    return core.scheduler.cache.flush()
