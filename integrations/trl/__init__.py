"""TRL's trainers draw their completions from an engine in the same process.

    engine = rootlet.Engine("model", dtype="float32")
    trainer = GRPOTrainer(model="model", reward_funcs=reward, args=GRPOConfig(bf16=False), train_dataset=data)
    with attach(trainer, engine):
        trainer.train()

:func:`attach` puts an engine where a trainer expects TRL's class for vLLM: GRPO, RLOO and Distillation, LoRA
too, with TRL's importance correction and its measure of the mismatch. :func:`rollout_func` is the hook that
TRL documents: GRPO only, and TRL then leaves the engine's log-probabilities out of its correction.

The extra ``trl`` installs what it needs. Raises MissingDependencyError where TRL is missing or of a
release that this was not written for.
"""

from .release import check_release

check_release()  # before the imports below, which would say less

from .generation import RootletGeneration  # noqa: E402
from .hooks import attach, rollout_func  # noqa: E402

__all__ = ["RootletGeneration", "attach", "rollout_func"]
