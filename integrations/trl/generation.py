"""The stand-in for the class by which TRL's trainers reach vLLM."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration

from ...errors import InvalidRequestError
from .rows import Rows, completions_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from ...engine.engine import Engine
    from ...engine.replies.outputs import RequestOutput
    from ...engine.weights.options import WeightUpdate

MODE = "rootlet"
"""What ``trainer.vllm_mode`` says. With its own two values trainers reach past this class, into vLLM."""

Completions = tuple[list[list[int]], list[list[int]], list[list[list[float | None]]], None]


class RootletGeneration(VLLMGeneration):
    """What a trainer calls to push its weights and to draw completions; see :func:`~.hooks.attach`.

    A subclass, for the one thing that is TRL's to know: ``_iter_named_params`` gathers what DDP, FSDP and
    ZeRO-3 have scattered, merges adapters and mends names. The rest of it is replaced, and its ``__init__``,
    which starts vLLM, is not called. Every process of a distributed trainer has an engine of its own.

    Attributes:
        trainer, engine: the two that it joins.
        release_between: give the engine's memory to the trainer between batches.
        first_version: what weights of step 0 are called; those of step s are ``first_version + s``. Not 0,
            for that are the weights which the engine was built with.
        last_update: what the last :meth:`sync_weights` did.
    """

    def __init__(self, trainer: Any, engine: Engine, *, release_between: bool = False) -> None:
        # what _iter_named_params reads
        self.model = trainer.model
        self.accelerator = trainer.accelerator
        self._dist = DistributedBackend(trainer.accelerator)

        self.trainer = trainer
        self.engine = engine
        self.release_between = release_between
        current, step = engine.weights_version, trainer.state.global_step
        self.first_version = current + 1 - step if isinstance(current, int) and current >= step else 0
        self.last_update: WeightUpdate | None = None
        self.rows = Rows(trainer, engine)
        self._is_released = False
        self._undo: list[tuple[str, Any]] = []

    # ---- what trainers call ------------------------------------------------------------------------

    def sync_weights(self) -> None:
        """Give the engine the trainer's weights, as they are now; what runs on it is aborted.

        Trainers call it once a step. Call it after training, if the engine is to serve on with the last ones.
        Raises WeightsError if they are not those of the engine's model.
        """
        engine, current = self.engine, self.engine.weights_version
        version: int | None = self.first_version + self.trainer.state.global_step
        if isinstance(current, int) and version is not None and current >= version:
            version = None  # once more in the same step
        if engine.shares_weights:
            self.last_update = engine.weights_changed(version=version)
        else:
            if self._is_released:
                engine.resume_memory(["weights"])
            self.last_update = self._push(version)
        if self._is_released:
            engine.resume_memory()
            self._is_released = False

    def generate(
        self,
        prompts: list[list[int]],
        images: list[Any] | None = None,
        num_generations: int = 1,  # noqa: ARG002 - rows are repeated already
        profiler: AbstractContextManager[Any] | None = None,
    ) -> Completions:
        """Draw a completion for each row of token ids.

        Returns the prompts, token ids [rows][tokens], their log-probabilities [rows][tokens][1], and None.
        Raises InvalidRequestError for images, and as :meth:`~.rows.Rows.draw`.
        """
        if images is not None and any(images):
            raise InvalidRequestError("The engine takes no images: train a text model, on prompts of text.")
        with profiler or nullcontext():
            outputs = self.draw(prompts)
        ids, logprobs = completions_of(outputs)
        return prompts, ids, [[[logprob] for logprob in row] for row in logprobs], None

    # ---- ours --------------------------------------------------------------------------------------

    def draw(self, prompts: list[list[int]]) -> list[RequestOutput]:
        """One :class:`~rootlet.RequestOutput` per row, from the weights of the last sync."""
        if self._is_released:  # a second batch within a step: the weights were given up behind the first
            self.sync_weights()
        outputs = self.rows.draw(prompts)
        if self.release_between:
            self.engine.release_memory()
            self._is_released = True
        return outputs

    def _push(self, version: int | None) -> WeightUpdate:
        named = self._iter_named_params()
        try:
            return self.engine.update_weights(named, version=version, on_running="abort")
        except BaseException:
            # TRL merges adapters into the trainer's weights while they are read, and takes them out behind
            # the last one only
            if any(getattr(module, "merged", False) for module in self.model.modules()):
                self.model.unmerge_adapter()
            named.close()
            raise

    def put(self, **attributes: Any) -> None:
        """Set attributes of the trainer, to be restored by :meth:`detach`."""
        for name, value in attributes.items():
            self._undo.append((name, vars(self.trainer).get(name, _ABSENT)))
            setattr(self.trainer, name, value)

    def detach(self) -> None:
        """Give the trainer back what it had: it generates by itself again. Idempotent."""
        while self._undo:
            name, value = self._undo.pop()
            if value is _ABSENT:
                delattr(self.trainer, name)
            else:
                setattr(self.trainer, name, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.detach()


_ABSENT = object()
