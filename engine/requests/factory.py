"""From what a caller passes to requests: one constructor for sync, async, streaming and single submissions.

Everything a request can be refused for is refused here, in the caller's thread, before the engine sees it.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ...errors import InvalidRequestError, RequestTooLongError
from ...sampling.custom import resolve_processor
from ...sampling.limits import (
    MAX_COPIED_TOKENS,
    MAX_MASK_BYTES,
    MAX_REQUESTS,
    MAX_TOP_LOGPROBS,
    check_product,
)
from ...sampling.params import SamplingParams
from ...sampling.rows import SamplingRow
from ...sampling.seeds import derive_seed
from ...sampling.seeds import random_seed as draw_seed
from ..output_kind import OutputKind
from ..schedule.namespace import Namespace
from ..schedule.request import LogprobOptions, Request
from ..steps.input_embeds import digest_of
from .arguments import GenerateArgs, check_flag, read_logprobs
from .constraints import Constraints, constraint_of
from .continuing import Finished, read_outputs, resume
from .encoding import TextEncoder
from .prompts import Limits, Prompt, is_nested, read_prompts
from .sessions import SessionParams, Sessions, Turn

if TYPE_CHECKING:
    from ...grammar.compiler import Compilation
    from ..schedule.versions import WeightSpan


@dataclass(frozen=True)
class Submission:
    """One request ready to be scheduled, and how its caller wants to see it."""

    request: Request
    index: int | None  # position in the batch, None for a single request
    stream: bool
    with_token_text: bool
    turn: Turn | None = None  # in a session
    grammar: Compilation | None = None  # of its constraint
    spans: Sequence[WeightSpan] = ()  # which weights drew the output that it goes on from


class _Wanted(NamedTuple):
    """What a request brings or asks for besides its prompt and parameters; not all of it is checked yet."""

    logprobs: LogprobOptions | None
    processor: Any
    hidden_states: Any
    sampling_mask: Any
    seed: int | None = None  # None: by the parameters
    notes: Mapping[str, Any] | None = None  # what a processor is told; None: by the parameters


class RequestFactory:
    """Validates arguments and builds requests. Stateless but for the source of seeds; any thread may call.

    Args:
        tokenizer: a transformers tokenizer, or None (token ids only).
        limits: sizes to check against.
        eos_token_ids: ids that end every request unless ``ignore_eos``.
        random_seed: makes the seeds drawn for requests that bring none repeatable; None draws them afresh.
        hidden_states: what ``return_hidden_states`` is for requests that do not say.
        sessions: the open ones; none if left out.
        kind: what the engine computes.
        auto_truncate: cut prompts that are too long instead of refusing them.
        constraints: compiles those of requests.
        encoder: reads texts; by default one that refuses those that cannot fit.
    """

    def __init__(
        self,
        tokenizer: Any,
        limits: Limits,
        eos_token_ids: Iterable[int],
        random_seed: int | None,
        *,
        hidden_states: bool = False,
        sessions: Sessions | None = None,
        kind: OutputKind = OutputKind.TEXT,
        auto_truncate: bool = False,
        constraints: Constraints | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.limits = limits
        self.eos_token_ids = frozenset(eos_token_ids)
        self.hidden_states = hidden_states
        self._encoder = encoder or TextEncoder(tokenizer, limits.max_prompt_tokens)
        self._sessions = sessions or Sessions(None)
        self._kind = kind
        self._auto_truncate = auto_truncate
        self._constraints = constraints
        self._seeds = None if random_seed is None else random.Random(random_seed)

    def build_one(self, args: GenerateArgs) -> Submission | Finished:
        """The one submission of ``args``; raises InvalidRequestError if they ask for several."""
        prompt = args.continue_from if args.prompt is None else args.prompt
        if isinstance(prompt, (list, tuple)) or is_nested(args.input_ids):
            raise _not_single()
        submissions, is_batch = self.build(args, max_samples=1)
        if is_batch:
            raise _not_single()
        return submissions[0]

    def build(
        self, args: GenerateArgs, max_samples: int | None = None
    ) -> tuple[Sequence[Submission | Finished], bool]:
        """Return the submissions in order (index = prompt * n + sample) and whether the result is a list."""
        self._kind.check(args.wanted)
        if args.continue_from is not None:
            return self._continued(args)
        stream, with_text = check_flag("stream", args.stream), args.flag("return_text_in_logprobs")
        prompts, is_batch = read_prompts(args, self._encoder, self.limits)
        count = len(prompts)
        turns = self._turns(args, prompts)
        prompts = [p if turn is None else Prompt(turn.input_ids) for p, turn in zip(prompts, turns)]
        params = self._params(args.sampling_params, count)
        if self._auto_truncate:
            prompts = [prompt.cut(self.limits, one.max_new_tokens) for prompt, one in zip(prompts, params)]
        n = _samples(params, prompts, turns, max_samples)
        is_batch = is_batch or n > 1
        options = _Options(args, count, self.hidden_states)
        submissions = []
        for i, prompt in enumerate(prompts):
            one, turn = params[i], turns[i]
            wanted = options.wanted(i, len(prompt.ids), self.limits.vocab_size)
            if prompt.embeds is not None:
                _check_beside_embeds(one, wanted.logprobs)
            ends = self._ends(one)
            for j in range(n):
                rid = options.rids[i] if n == 1 else f"{options.rids[i]}-{j}"
                request = self._request(prompt, one, rid, wanted, ends, sample=j)
                index = i * n + j if is_batch else None
                submissions.append(Submission(request, index, stream, with_text, turn, self._grammar(one)))
        return submissions, is_batch

    def _continued(self, args: GenerateArgs) -> tuple[Sequence[Submission | Finished], bool]:
        """:meth:`build` of a call that goes on from outputs."""
        stream = check_flag("stream", args.stream)
        outputs, is_batch = read_outputs(args)
        count = len(outputs)
        given = None if args.sampling_params is None else self._params(args.sampling_params, count)
        processors, rids = args.per_prompt("custom_logit_processor", count), args.rids(count)
        submissions: list[Submission | Finished] = []
        for i, output in enumerate(outputs):
            index = i if is_batch else None
            found = resume(output, None if given is None else given[i], processors[i], self.limits)
            if isinstance(found, Finished):
                submissions.append(Finished(output.at(index)))
                continue
            kept, params = found.kept, found.params
            if found.prompt.embeds is not None:
                _check_beside_embeds(params, kept.logprobs)
            processor = kept.processor if processors[i] is None else processors[i]
            told = kept.notes if given is None or params.custom_params is None else None
            seed = kept.seed if params.seed is None or given is None else params.seed
            wanted = _Wanted(kept.logprobs, processor, kept.wants_states, kept.wants_masks, seed, told)
            request = self._request(found.prompt, params, rids[i], wanted, self._ends(params), sample=0)
            kept.restore(request, output.token_ids, output.hidden_states or ())
            request.num_cached_tokens = output.cached_tokens
            grammar, spans = self._grammar(params), output.weights_versions
            submissions.append(
                Submission(request, index, stream, kept.wants_text, grammar=grammar, spans=spans)
            )
        return submissions, is_batch

    def _grammar(self, params: SamplingParams) -> Compilation | None:
        return None if self._constraints is None else self._constraints.grammar(params)

    def _turns(self, args: GenerateArgs, prompts: list[Prompt]) -> list[Turn | None]:
        turns: list[Turn | None] = []
        for prompt, one in zip(prompts, args.per_prompt("session_params", len(prompts))):
            params = SessionParams.parse(one)
            if params is not None and prompt.embeds is not None:
                raise InvalidRequestError("A session is made of tokens: it cannot take input_embeds.")
            turns.append(None if params is None else self._sessions.extend(params, prompt.ids))
        return turns

    def _params(self, given: Any, count: int) -> list[SamplingParams]:
        if isinstance(given, (list, tuple)):
            if len(given) != count:
                raise InvalidRequestError(
                    f"sampling_params has {len(given)} entries for {count} prompts: give one per prompt,"
                    " or a single one for all."
                )
            return [self._one_params(p) for p in given]
        return [self._one_params(given)] * count

    def _one_params(self, given: Any) -> SamplingParams:
        params = SamplingParams.read(given)
        params.check_vocab(self.limits.vocab_size)
        if self.tokenizer is None and params.stop:
            raise InvalidRequestError(
                "Stop strings need a tokenizer, and the engine has none (skip_tokenizer_init=True):"
                " use stop_token_ids."
            )
        return params

    def _request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        rid: str,
        wanted: _Wanted,
        ends: tuple[int, ...],
        *,
        sample: int,
    ) -> Request:
        logprobs, told = wanted.logprobs, wanted.notes
        if wanted.seed is not None:
            seed = wanted.seed
        elif params.seed is not None:
            seed = derive_seed(params.seed, sample) if params.n > 1 else params.seed
        else:
            seed = draw_seed(self._seeds)
        # with a constraint nothing but an end is allowed where it is met, so that is one
        stops = () if params.ignore_eos and constraint_of(params) is None else ends
        max_new_tokens = self.limits.max_new_tokens(len(prompt.ids), params.max_new_tokens)
        _check_min_new_tokens(params, max_new_tokens)
        if logprobs is not None and logprobs.top:
            scored = 0 if logprobs.prompt_start is None else len(prompt.ids) - logprobs.prompt_start
            positions = f"top_logprobs_num={logprobs.top} times positions"
            check_product(positions, logprobs.top * (scored + max_new_tokens), params.n, MAX_TOP_LOGPROBS)
        row = SamplingRow(
            params=params,
            seed=seed,
            slot=0,
            prompt_len=len(prompt.ids),
            banned_until_min=ends,
            logprobs=logprobs is not None,
            top_logprobs=logprobs.top if logprobs else 0,
            logprobs_of=logprobs.of if logprobs else None,
            sampling_mask=check_flag("return_sampling_mask", wanted.sampling_mask),
            processor=resolve_processor(wanted.processor, params.custom_params),
            custom_params=dict(told or params.custom_params or {}),
        )
        if row.masked:
            size = _mask_bytes(params, self.limits.vocab_size) * max(max_new_tokens, 1)
            hint = "Lower max_new_tokens, or set top_k."
            check_product("Bytes of return_sampling_mask", size, params.n, MAX_MASK_BYTES, hint)
        return Request(
            rid=rid,
            token_ids=array("i", prompt.ids),
            params=params,
            max_new_tokens=max_new_tokens,
            stop_token_ids=frozenset(stops),
            sampling_row=row,
            logprobs=logprobs,
            return_hidden_states=check_flag("return_hidden_states", wanted.hidden_states),
            namespace=Namespace(embeds=None if prompt.embeds is None else digest_of(prompt.embeds)),
            input_embeds=prompt.embeds,
        )

    def _ends(self, params: SamplingParams) -> tuple[int, ...]:
        """Token ids that end a request, ascending."""
        own = cast("tuple[int, ...]", params.stop_token_ids)  # what is kept of all that may be given
        return tuple(sorted({*own, *self.eos_token_ids}))


class _Options:
    """What holds for each of ``count`` prompts, by their order."""

    def __init__(self, args: GenerateArgs, count: int, hidden_states: bool) -> None:
        wanted = args.per_prompt("return_logprob", count, False)
        more = ("logprob_start_len", "top_logprobs_num", "logprobs_of")
        starts, tops, kinds = (args.per_prompt(name, count) for name in more)
        self._logprobs = list(zip(wanted, starts, tops, kinds))
        self._processors = args.per_prompt("custom_logit_processor", count)
        self._hidden = args.per_prompt("return_hidden_states", count, hidden_states)
        self._masks = args.per_prompt("return_sampling_mask", count, False)
        self.rids = args.rids(count)

    def wanted(self, index: int, prompt_len: int, vocab_size: int) -> _Wanted:
        """What prompt ``index`` asks for."""
        logprobs = read_logprobs(*self._logprobs[index], prompt_len, vocab_size)
        return _Wanted(logprobs, self._processors[index], self._hidden[index], self._masks[index])


def _samples(
    params: list[SamplingParams], prompts: list[Prompt], turns: list[Turn | None], most: int | None
) -> int:
    """``n``, the same for all prompts; raises InvalidRequestError if there are too many."""
    samples = {p.n for p in params}
    if len(samples) > 1:
        raise InvalidRequestError(
            "The parallel_sample_num should be the same for all samples in sample params."
            f" Got n in {sorted(samples)}: send prompts with different n in separate calls."
        )
    n = samples.pop() if samples else 1
    if most is not None and n > most:
        raise _not_single()
    if n > 1:
        check_product("The number of prompts", len(prompts), n, MAX_REQUESTS)
        check_product("Prompt tokens", sum(len(p.ids) for p in prompts), n, MAX_COPIED_TOKENS)
    if n > 1 and any(turns):
        raise InvalidRequestError(f"A session continues one output at a time: leave n={n} out.")
    return n


def _mask_bytes(params: SamplingParams, vocab_size: int) -> int:
    """What a sampling mask of one token may take: a bit per token of the vocabulary, or fewer ids."""
    bits = -(-vocab_size // 32) * 4
    return min(bits, 4 * params.top_k) if params.top_k > 0 else bits


def _check_min_new_tokens(params: SamplingParams, max_new_tokens: int) -> None:
    if params.min_new_tokens > max_new_tokens:  # only without a limit of its own: it fills the context
        raise RequestTooLongError(
            f"min_new_tokens={params.min_new_tokens} is more than the {max_new_tokens} tokens that fit behind"
            " the prompt. Lower it, or shorten the prompt."
        )


def _check_beside_embeds(params: SamplingParams, logprobs: LogprobOptions | None) -> None:
    """Refuse what needs the prompt's tokens: there are none."""
    if params.repetition_penalty != 1:
        raise InvalidRequestError(
            "repetition_penalty counts the prompt's tokens, and input_embeds have none: use"
            " frequency_penalty or presence_penalty, which count the output's."
        )
    if logprobs is not None and logprobs.prompt_start is not None:
        raise InvalidRequestError("logprob_start_len scores the prompt's tokens, and input_embeds have none.")


def _not_single() -> InvalidRequestError:
    return InvalidRequestError("submit() takes one prompt with n=1; use generate() for batches.")
