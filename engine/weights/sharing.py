"""A trainer's parameters as views of the engine's memory: a step of the optimizer moves no byte.

The trainer adopts the engine's memory, not the reverse: projections that the engine multiplies at once lie
side by side in it, and rows of that are what the parameters become. Optimizers write in place, so what they
do is there at once. Nobody notices it (fused optimizers raise no version counter), so the trainer says so.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from ...errors import WeightsError
from ...models.layers.weight_update import TensorSpec
from .options import UpdateOptions, WeightUpdate
from .renewal import Renewal, marks
from .tensors import check_tensors

if TYPE_CHECKING:
    from ...models.interface import Model
    from ..loop import EngineLoop
    from ..memory import EngineMemory

_SHARED = (
    "A module shares the weights, and lies in their memory: unshare_weights() first, or release 'kv_cache'"
    " and 'cuda_graph' alone."
)
_COPY = "Copy the weights instead: update_weights(module)."


class _Shared(NamedTuple):
    """One name, where the module keeps its parameter, and the engine's memory."""

    name: str
    owner: Module
    attribute: str
    view: Tensor

    @property
    def parameter(self) -> Parameter:
        """The one that the module has now."""
        return getattr(self.owner, self.attribute)

    @property
    def holds(self) -> bool:
        """Whether it lies in the engine's memory."""
        parameter, view = self.parameter, self.view
        return parameter.data_ptr() == view.data_ptr() and parameter.dtype == view.dtype


class Sharing:
    """Which module shares an engine's weights, if any. Any thread may call but the engine's own.

    ``turn``: held by whoever changes the weights.
    """

    def __init__(self, loop: EngineLoop, memory: EngineMemory, turn: threading.Lock) -> None:
        self._loop = loop
        self._memory = memory
        self._turn = turn
        self._shared: tuple[_Shared, ...] = ()

    @property
    def is_on(self) -> bool:
        """Whether a module shares the weights."""
        return bool(self._shared)

    def begin(self, module: Module, options: UpdateOptions) -> WeightUpdate:
        """Give the engine the module's values, and the module the engine's memory.

        Raises WeightsError, with nothing changed, where the two cannot be one.
        """
        with self._turn:
            if self._shared:
                raise WeightsError("The weights are shared with a module already: unshare_weights() first.")
            renewal = Renewal(self._loop, self._memory, options)
            parameters = dict(module.named_parameters(remove_duplicate=False))
            shared = self._match(renewal.runner.model, module, parameters)

            def adopt() -> int:
                with torch.inference_mode(False), torch.no_grad():
                    for one in shared:
                        one.view.copy_(one.parameter)
                    for one in shared:
                        one.parameter.data = one.view
                self._memory.borrow("weights", _SHARED)
                return sum(one.view.nbytes for one in shared)

            done = renewal.run(adopt, marks(parameters.values()), len(shared))
            self._shared = tuple(shared)
            return done

    def changed(self, options: UpdateOptions) -> WeightUpdate:
        """The module's values are others now. Raises WeightsError if it shares nothing, or no longer."""
        with self._turn:
            self._require()
            self.check()
            renewal = Renewal(self._loop, self._memory, options)
            return renewal.run(lambda: 0, marks(one.view for one in self._shared), len(self._shared))

    def end(self) -> None:
        """Give the module memory of its own, with the same values. Idempotent."""
        with self._turn:
            with torch.no_grad():
                for one in self._shared:
                    if one.holds:
                        one.parameter.data = one.view.clone()
            if self._shared and not self._loop.is_closed:
                self._loop.call(lambda core: self._memory.give_back("weights", _SHARED))  # noqa: ARG005
            self._shared = ()

    def check(self) -> None:
        """Raise WeightsError if a parameter has left the engine's memory."""
        gone = [one.name for one in self._shared if not one.holds]
        if gone:
            raise WeightsError(
                f"{gone[0]} and {len(gone) - 1} other parameters no longer share the engine's memory: they"
                " got memory of their own, as by .to() of another dtype or load_state_dict(assign=True)."
                " Share again: unshare_weights(), then share_weights(module)."
            )

    def refuse_updates(self) -> None:
        """Raise WeightsError if weights are shared: an update would write over the module's."""
        if self._shared:
            raise WeightsError(
                "An update would write into the module that shares the weights. After a step of the trainer"
                " call weights_changed(); to part from it unshare_weights()."
            )

    def _require(self) -> None:
        if not self._shared:
            raise WeightsError("No module shares the weights: share_weights(module) first.")

    def _match(self, model: Model, module: Module, parameters: Mapping[str, Parameter]) -> list[_Shared]:
        check_tensors(parameters.items())
        specs = {name: TensorSpec(tuple(one.shape), one.dtype) for name, one in parameters.items()}
        plan = model.plan_update(specs, partial=False)
        plan.check_ties(parameters)
        shared, problems = [], []
        for name, parameter in parameters.items():
            view = plan.view(name)
            if view is None:
                problems.append(f"{name} is kept in another layout than the module's")
            elif (view.dtype, view.device) != (parameter.dtype, parameter.device):
                problems.append(
                    f"{name} is {parameter.dtype} on {parameter.device}, the engine's {view.dtype} on"
                    f" {view.device}"
                )
            else:
                owner, _, attribute = name.rpartition(".")
                shared.append(_Shared(name, module.get_submodule(owner), attribute, view))
        if problems:
            more = f", and so {len(problems) - 1} more" if len(problems) > 1 else ""
            raise WeightsError(f"The weights cannot be shared: {problems[0]}{more}. {_COPY}")
        return shared
