"""A step under way: what it sampled, on its way from the device to the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...errors import RootletError
from ...sampling.processors import explain
from ...sampling.rows import SamplingRow
from ...sampling.sampler import SampleOutput
from ..schedule.batch import StepResult
from ..schedule.logprobs import PackedLogprob, TokenLogprob, pack_logprobs
from ..schedule.sampling_masks import PackedMask, pack_masks
from .hidden_states import CollectedStates
from .host_copy import HostCopy
from .prompt_scores import PromptScores


@dataclass
class LaunchedStep:
    """A step whose kernels are enqueued; ``wait`` blocks until its results are on the host.

    ``rows``: how each of the S tokens is drawn, of a vocabulary of ``vocab_size``. ``pending``: what is left
    to enqueue of a step that cannot draw before the tokens of the one ahead are committed, because its
    grammar masks depend on them.
    """

    rows: Sequence[SamplingRow]
    vocab_size: int = 0
    sampled: HostCopy | None = None
    scores: tuple[PromptScores, ...] = ()
    states: CollectedStates | None = None
    pending: Callable[[], HostCopy | None] | None = None

    def draw(self) -> None:
        """Enqueue the drawing of tokens, if that is still to be done. Earlier steps must be committed."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            self.sampled = pending()

    def wait(self) -> StepResult:
        """Block until the step is done and return what it produced."""
        states = () if self.states is None else self.states.wait()
        if self.sampled is None:
            return StepResult([], prompt_scores=self._prompt_scores(), hidden_states=states)
        return StepResult(
            self.sampled.tensor("token_ids").tolist(),
            self._logprobs(self.sampled),
            self._prompt_scores(),
            states,
            self.sampled.get("embeddings"),
            self._failures(self.sampled),
            self._sampling_masks(self.sampled),
        )

    def _failures(self, sampled: HostCopy) -> dict[int, RootletError]:
        failures = dict(sampled.errors)
        flags = sampled.get("flags") or ()  # none: a recorded greedy step, which looks for no NaN
        if any(flags):
            for i, flag in enumerate(flags):
                if flag:
                    failures.setdefault(i, explain(flag, self.rows[i]))
        return failures

    def _logprobs(self, sampled: HostCopy) -> list[PackedLogprob | None] | None:
        if "logprobs" not in sampled:
            return None
        names = ("token_ids", "logprobs", "top_values", "top_ids")
        arrays = [sampled.tensor(name).numpy() for name in names if name in sampled]
        return pack_logprobs(self.rows, *arrays)

    def _sampling_masks(self, sampled: HostCopy) -> list[PackedMask | None] | None:
        if "kept" not in sampled:
            return None
        masks = iter(pack_masks(sampled.tensor("kept").numpy(), self.vocab_size))
        return [next(masks) if row.masked else None for row in self.rows]

    def _prompt_scores(self) -> dict[int, list[TokenLogprob]]:
        result: dict[int, list[TokenLogprob]] = {}
        for part in self.scores:
            ids, logprobs = part.values.tensor("target_ids").tolist(), part.values.tensor("logprobs").tolist()
            values, top_ids = part.values.get("top_values") or (), part.values.get("top_ids") or ()
            tops = [tuple(zip(v, t)) for v, t in zip(values, top_ids)] if values else [None] * len(ids)
            result.setdefault(part.row, []).extend(
                TokenLogprob(logprob, token, top) for logprob, token, top in zip(logprobs, ids, tops)
            )
        return result


def copy_sampled(sampled: SampleOutput, errors: Mapping[int, RootletError]) -> HostCopy:
    """Begin to copy what was sampled; ``errors`` of rows are added to those of the sampler."""
    return HostCopy(
        {
            "token_ids": sampled.token_ids,
            "logprobs": sampled.logprobs,
            "top_values": sampled.top_values,
            "top_ids": sampled.top_ids,
            "kept": sampled.kept,
            "flags": sampled.flags,
        },
        {**(sampled.errors or {}), **errors},
    )
