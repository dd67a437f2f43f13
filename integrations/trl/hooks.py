"""How an engine gets into a trainer: in place of vLLM, or by the function that TRL asks for rollouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...engine.chat.conversation import Conversation
from ...errors import ConfigError, InvalidRequestError
from .fit import check_fit, missing_eos
from .generation import MODE, RootletGeneration
from .rows import completions_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...engine.engine import Engine


def attach(
    trainer: Any, engine: Engine, *, release_between: bool = False, allow_dtype_mismatch: bool = False
) -> RootletGeneration:
    """Let ``trainer`` draw its completions from ``engine``, with the weights of the step it is at.

    Args:
        trainer: a GRPOTrainer, RLOOTrainer or DistillationTrainer, built without ``use_vllm``.
        engine: one of the same model and tokenizer, in the dtype that the trainer computes in.
        release_between: give the engine's memory to the trainer between batches (``Engine.release_memory``).
        allow_dtype_mismatch: take an engine that computes in another dtype.

    Returns what stands in for TRL's class; its ``detach()``, or the end of a ``with`` block, undoes all this.
    No code of TRL is changed: attributes of this trainer are set. They are the four by which trainers reach
    vLLM, and ``eos_token_ids``, to which come the engine's further ends of a turn, lest the trainer call what
    they end truncated.

    With ``engine.share_weights(trainer.model)`` before it no weights are copied at all.

    Raises ConfigError, with the trainer as it was.
    """
    if getattr(trainer, "use_vllm", False):
        raise ConfigError(
            "The trainer has an engine already: call detach() of what attach() returned."
            if trainer.vllm_mode == MODE
            else "The trainer was built with use_vllm=True, and has vLLM: build it with use_vllm=False."
        )
    check_fit(trainer, engine, allow_dtype_mismatch=allow_dtype_mismatch)
    generation = RootletGeneration(trainer, engine, release_between=release_between)
    generation.put(
        vllm_generation=generation,
        vllm_mode=MODE,
        use_vllm=True,
        _last_loaded_step=-1,  # at no step yet: the first batch syncs
        eos_token_ids=[*trainer.eos_token_ids, *missing_eos(trainer, engine)],
    )
    return generation


def rollout_func(
    engine: Engine, *, release_between: bool = False, allow_dtype_mismatch: bool = False
) -> Callable[[list[Any], Any], dict[str, Any]]:
    """A function for ``GRPOTrainer(rollout_func=...)``; arguments as in :func:`attach`.

    Prompts are texts, or lists of messages, which the engine's chat template renders. Besides what TRL asks
    for, ``weights_version`` reaches reward functions, per completion: integers that rise with the steps.
    Weights are pushed when the step has changed. Of a trainer that is also attached to the engine TRL uses
    the log-probabilities as well.

    The function raises ConfigError at its first call, and InvalidRequestError for a trainer with tools or
    ``chat_template_kwargs``, which :func:`attach` can do.
    """
    return _RolloutFunc(engine, release_between, allow_dtype_mismatch)


class _RolloutFunc:
    def __init__(self, engine: Engine, release_between: bool, allow_dtype_mismatch: bool) -> None:
        self._engine = engine
        self._release_between = release_between
        self._allow_dtype_mismatch = allow_dtype_mismatch
        self._generation: RootletGeneration | None = None
        self._synced_step = -1

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        generation = self._generation_of(trainer)
        step = trainer.state.global_step
        if not trainer.use_vllm and step != self._synced_step:  # else TRL has done it
            generation.sync_weights()
            self._synced_step = step
        prompt_ids = self._encode(prompts, trainer)
        outputs = generation.draw(prompt_ids)
        ids, logprobs = completions_of(outputs)
        versions = [output.weights_version for output in outputs]
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": ids,
            "logprobs": logprobs,
            "weights_version": versions,
        }

    def _generation_of(self, trainer: Any) -> RootletGeneration:
        attached = getattr(trainer, "vllm_generation", None)
        if isinstance(attached, RootletGeneration):
            return attached
        if self._generation is None or self._generation.trainer is not trainer:
            check_fit(trainer, self._engine, allow_dtype_mismatch=self._allow_dtype_mismatch)
            generation = RootletGeneration(trainer, self._engine, release_between=self._release_between)
            generation.put(eos_token_ids=[*trainer.eos_token_ids, *missing_eos(trainer, self._engine)])
            self._generation, self._synced_step = generation, -1
        return self._generation

    def _encode(self, prompts: list[Any], trainer: Any) -> list[list[int]]:
        """Token ids of each prompt: texts as the trainer itself would read them."""
        if not prompts or isinstance(prompts[0], str):
            ids: list[list[int]] = trainer.processing_class(text=prompts)["input_ids"] if prompts else []
            return ids
        for name in ("tools", "chat_template_kwargs"):
            if getattr(trainer, name, None):
                raise InvalidRequestError(
                    f"The trainer has {name}, which this rollout function does not render: leave rollout_func"
                    " out and use attach(trainer, engine)."
                )
        renderer = self._engine.chat_renderer
        return [renderer.encode(Conversation.from_json(prompt)).token_ids for prompt in prompts]
