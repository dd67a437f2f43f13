"""The rows of a trainer's batch: how each is sampled, by which seed, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import InvalidRequestError
from ...sampling.seeds import derive_seed

if TYPE_CHECKING:
    from ...engine.engine import Engine
    from ...engine.replies.outputs import RequestOutput


@dataclass
class Rows:
    """Draws a completion for every row of a batch. Rows repeat: TRL sends each prompt once per generation.

    So each has a seed of its own, which follows from the trainer's seed, its step, the calls within that step
    and the row: the rows of one prompt differ, and a run can be repeated.
    """

    trainer: Any
    engine: Engine
    _step: int = -1
    _calls: int = 0

    def draw(self, prompts: list[list[int]]) -> list[RequestOutput]:
        """One output per row of token ids: at least one token, and its log-probabilities at the trainer's
        temperature over the whole vocabulary, as the trainer computes them.

        Raises InvalidRequestError if somebody aborts a row meanwhile, and as ``Engine.generate``.
        """
        params = sampling_params(self.trainer)
        outputs = self.engine.generate(
            input_ids=[list(map(int, prompt)) for prompt in prompts],
            sampling_params=[{**params, "seed": seed} for seed in self._seeds(len(prompts))],
            return_logprob=True,
            logprobs_of="tempered",
        )
        for row, output in enumerate(outputs):
            reason = output.finish_reason or {}
            if reason.get("type") == "abort" or not output.token_ids:
                raise InvalidRequestError(
                    f"Row {row} of {len(outputs)} was aborted while the trainer waited for it ({reason}), and"
                    " the trainer cannot use a part of a completion. Let nobody else update the weights,"
                    " pause the engine or abort requests while it generates."
                )
        return outputs

    def _seeds(self, num_rows: int) -> list[int]:
        """A seed per row, different in all processes, steps and calls (a step may draw several batches)."""
        step = self.trainer.state.global_step
        self._calls = self._calls + 1 if step == self._step else 0
        self._step = step
        first = self.trainer.accelerator.process_index * num_rows
        seed = int(self.trainer.args.seed)
        for number in (step, self._calls):
            seed = derive_seed(seed, number + 1)  # of 0 it is the seed itself
        return [derive_seed(seed, first + row + 1) for row in range(num_rows)]


def sampling_params(trainer: Any) -> dict[str, Any]:
    """What the trainer asks of the sampler, in our names; ``generation_kwargs`` are in our names already."""
    params = {
        "temperature": trainer.temperature,
        "top_p": trainer.top_p,
        "top_k": trainer.top_k or -1,  # 0 and None keep all
        "min_p": trainer.min_p or 0.0,
        "repetition_penalty": trainer.repetition_penalty,
        "max_new_tokens": trainer.max_completion_length,
        "stop_token_ids": list(trainer.eos_token_ids),
    }
    regex = getattr(trainer.args, "vllm_structured_outputs_regex", None)
    return params | ({"regex": regex} if regex else {}) | (trainer.args.generation_kwargs or {})


def completions_of(outputs: list[RequestOutput]) -> tuple[list[list[int]], list[list[float | None]]]:
    """Token ids, stop token included, and the log-probability of each."""
    ids = [list(output.token_ids) for output in outputs]
    return ids, [[logprob for logprob, *_ in output.output_token_logprobs or ()] for output in outputs]
