"""From what a caller passes to requests: one constructor for sync, async, streaming and single submissions.

Everything a request can be refused for is refused here, in the caller's thread, before the engine sees it.
"""

from __future__ import annotations

import logging
import random
import uuid
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import InvalidRequestError, RequestTooLongError, short
from ...sampling.custom import resolve_processor
from ...sampling.limits import (
    MAX_COPIED_TOKENS,
    MAX_ID_CHARS,
    MAX_REQUESTS,
    MAX_TOP_LOGPROBS,
    check_count,
    check_product,
)
from ...sampling.params import SamplingParams
from ...sampling.rows import SamplingRow
from ...sampling.seeds import derive_seed
from ...sampling.seeds import random_seed as draw_seed
from ..schedule.namespace import Namespace
from ..schedule.request import LogprobOptions, Request
from ..steps.input_embeds import PLACEHOLDER, digest_of, parse_embeds
from .constraints import Constraints, constraint_of
from .encoding import TextEncoder
from .sessions import SessionParams, Sessions, Turn

if TYPE_CHECKING:
    import torch

    from ...grammar.compiler import Compilation

logger = logging.getLogger("rootlet.engine")

Prompt = "str | Sequence[str]"


@dataclass(frozen=True)
class Limits:
    """What the engine can hold. ``pool_tokens``: KV room of an empty pool."""

    vocab_size: int
    context_length: int
    pool_tokens: int
    hidden_size: int = 0  # of input_embeds

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt; behind it one token more fits."""
        return min(self.context_length - 1, self.pool_tokens)


@dataclass(frozen=True)
class Submission:
    """One request ready to be scheduled, and how its caller wants to see it."""

    request: Request
    index: int | None  # position in the batch, None for a single request
    stream: bool
    with_token_text: bool
    turn: Turn | None = None  # in a session
    grammar: Compilation | None = None  # of its constraint


@dataclass(frozen=True)
class GenerateArgs:
    """The arguments of ``generate`` and its siblings, as given."""

    prompt: Any = None
    sampling_params: Any = None
    input_ids: Any = None
    return_logprob: Any = False
    logprob_start_len: Any = None
    top_logprobs_num: Any = None
    return_text_in_logprobs: bool = False
    stream: bool = False
    rid: Any = None
    custom_logit_processor: Any = None
    return_hidden_states: Any = None
    session_params: Any = None
    input_embeds: Any = None
    embeds: bool = False  # encode and classify

    @classmethod
    def for_embedding(cls, prompt: Any, input_ids: Any, rid: Any) -> GenerateArgs:
        """The arguments of ``encode``: a request without new tokens."""
        params = {"temperature": 0, "max_new_tokens": 0}
        return cls(prompt, params, input_ids, rid=rid, return_hidden_states=False, embeds=True)


class _Prompt(NamedTuple):
    """Token ids, and the vectors they stand for if the prompt was given as those."""

    ids: list[int]
    embeds: torch.Tensor | None = None


class RequestFactory:
    """Validates arguments and builds requests. Stateless but for the source of seeds; any thread may call.

    Args:
        tokenizer: a transformers tokenizer, or None (token ids only).
        limits: sizes to check against.
        eos_token_ids: ids that end every request unless ``ignore_eos``.
        random_seed: makes the seeds drawn for requests that bring none repeatable; None draws them afresh.
        hidden_states: what ``return_hidden_states`` is for requests that do not say.
        sessions: the open ones; none if left out.
        embeds: the engine computes embeddings and no tokens.
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
        embeds: bool = False,
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
        self._embeds = embeds
        self._auto_truncate = auto_truncate
        self._constraints = constraints
        self._seeds = None if random_seed is None else random.Random(random_seed)

    def build_one(self, args: GenerateArgs) -> Submission:
        """The one submission of ``args``; raises InvalidRequestError if they ask for several."""
        if isinstance(args.prompt, (list, tuple)) or _is_nested(args.input_ids):
            raise _not_single()
        submissions, is_batch = self.build(args, max_samples=1)
        if is_batch:
            raise _not_single()
        return submissions[0]

    def build(self, args: GenerateArgs, max_samples: int | None = None) -> tuple[list[Submission], bool]:
        """Return the submissions in order (index = prompt * n + sample) and whether the result is a list."""
        self._check_kind(args)
        _flag("stream", args.stream)
        _flag("return_text_in_logprobs", args.return_text_in_logprobs)
        prompts, is_batch = self._prompts(args)
        count = len(prompts)
        turns = self._turns(args.session_params, prompts)
        prompts = [p if turn is None else _Prompt(turn.input_ids) for p, turn in zip(prompts, turns)]
        params = self._params(args.sampling_params, count)
        if self._auto_truncate:
            prompts = [self._cut(prompt, one.max_new_tokens) for prompt, one in zip(prompts, params)]
        samples = {p.n for p in params}
        if len(samples) > 1:
            raise InvalidRequestError(
                "The parallel_sample_num should be the same for all samples in sample params."
                f" Got n in {sorted(samples)}: send prompts with different n in separate calls."
            )
        n = samples.pop() if samples else 1
        if max_samples is not None and n > max_samples:
            raise _not_single()
        if n > 1:
            check_product("The number of prompts", count, n, MAX_REQUESTS)
            check_product("Prompt tokens", sum(len(p.ids) for p in prompts), n, MAX_COPIED_TOKENS)
        if n > 1 and any(turns):
            raise InvalidRequestError(f"A session continues one output at a time: leave n={n} out.")
        is_batch = is_batch or n > 1
        wanted = _per_prompt("return_logprob", args.return_logprob, count, False)
        starts = _per_prompt("logprob_start_len", args.logprob_start_len, count, None)
        tops = _per_prompt("top_logprobs_num", args.top_logprobs_num, count, None)
        processors = _per_prompt("custom_logit_processor", args.custom_logit_processor, count, None)
        hidden = _per_prompt("return_hidden_states", args.return_hidden_states, count, self.hidden_states)
        rids = self._rids(args.rid, count, is_list=isinstance(args.prompt or args.input_ids, (list, tuple)))
        submissions = []
        for i, prompt in enumerate(prompts):
            length = len(prompt.ids)
            logprobs = _logprob_options(wanted[i], starts[i], tops[i], length, self.limits.vocab_size)
            if prompt.embeds is not None:
                _check_beside_embeds(params[i], logprobs)
            ends = self._ends(params[i])
            for j in range(n):
                rid = rids[i] if n == 1 else f"{rids[i]}-{j}"
                request = self._request(
                    prompt, params[i], rid, logprobs, processors[i], hidden[i], ends, sample=j
                )
                index = i * n + j if is_batch else None
                grammar = None if self._constraints is None else self._constraints.grammar(params[i])
                submissions.append(
                    Submission(request, index, args.stream, args.return_text_in_logprobs, turns[i], grammar)
                )
        return submissions, is_batch

    def _check_kind(self, args: GenerateArgs) -> None:
        if args.embeds and not self._embeds:
            raise InvalidRequestError(
                "This engine generates text. For embeddings build it with is_embedding=True, or load an"
                " embedding or reward model."
            )
        if self._embeds and not args.embeds:
            raise InvalidRequestError(
                "This engine computes embeddings (encode) or scores (classify); it generates no text. Load a"
                " model with a language head, without is_embedding=True."
            )

    # ---- prompts -----------------------------------------------------------------------------------

    def _prompts(self, args: GenerateArgs) -> tuple[list[_Prompt], bool]:
        given = [name for name in ("prompt", "input_ids", "input_embeds") if getattr(args, name) is not None]
        if len(given) != 1:
            raise InvalidRequestError(
                f"Either text, input_ids or input_embeds should be provided, exactly one; got"
                f" {' and '.join(given) or 'none'}. Pass prompt='...' (or a list of strings), input_ids=[...]"
                " (or a list of lists of ints), or input_embeds (one row of numbers per token)."
            )
        if args.input_embeds is not None:
            matrices, is_batch = parse_embeds(args.input_embeds, self.limits.hidden_size)
            return [_Prompt([PLACEHOLDER] * len(matrix), matrix) for matrix in matrices], is_batch
        if args.prompt is not None:
            texts, is_batch = _texts(args.prompt)
            ids = self._encoder.encode_all(texts)
        else:
            ids, is_batch = _id_lists(args.input_ids)
        for i, prompt in enumerate(ids):
            where = f" (prompt {i} of the batch)" if is_batch else ""
            if not prompt:
                raise InvalidRequestError(f"The prompt is empty{where}: it must have at least one token.")
            if min(prompt) < 0 or max(prompt) >= self.limits.vocab_size:
                bad = next(t for t in prompt if not 0 <= t < self.limits.vocab_size)
                raise InvalidRequestError(
                    f"Token id {bad}{where} is outside the vocabulary [0, {self.limits.vocab_size})."
                )
        return [_Prompt(prompt) for prompt in ids], is_batch

    def _cut(self, prompt: _Prompt, asked: int | None) -> _Prompt:
        """The first tokens of a prompt that leave room for the ``asked`` new ones, at least for one."""
        limits = self.limits
        room = min(limits.context_length - max(asked or 1, 1), limits.pool_tokens - max(asked or 1, 1) + 1)
        length = len(prompt.ids)
        if length <= room or room < 1:  # no prompt fits: refused like any other
            return prompt
        logger.warning(
            "A prompt of %d tokens was cut to its first %d (allow_auto_truncate=True)", length, room
        )
        return _Prompt(prompt.ids[:room], None if prompt.embeds is None else prompt.embeds[:room])

    def _turns(self, given: Any, prompts: list[_Prompt]) -> list[Turn | None]:
        turns: list[Turn | None] = []
        for prompt, one in zip(prompts, _per_prompt("session_params", given, len(prompts), None)):
            params = SessionParams.parse(one)
            if params is not None and prompt.embeds is not None:
                raise InvalidRequestError("A session is made of tokens: it cannot take input_embeds.")
            turns.append(None if params is None else self._sessions.extend(params, prompt.ids))
        return turns

    # ---- parameters --------------------------------------------------------------------------------

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

    def _rids(self, rid: Any, count: int, *, is_list: bool) -> list[str]:
        if rid is None:
            return [uuid.uuid4().hex for _ in range(count)]
        rids = list(rid) if isinstance(rid, (list, tuple)) else [rid]
        if not all(isinstance(r, str) and r for r in rids):
            raise InvalidRequestError(f"rid must be a non-empty string or a list of them, got {short(rid)}.")
        check_count("The length of a rid", max(map(len, rids), default=0), MAX_ID_CHARS)
        if len(rids) != count or (is_list and isinstance(rid, str) and count > 1):
            raise InvalidRequestError(
                f"rid must be a list with one id per prompt ({count}), got {short(rid)}."
            )
        if len(set(rids)) != count:
            raise InvalidRequestError(f"rid must not repeat within a batch, got {short(rid)}.")
        return rids

    def _request(
        self,
        prompt: _Prompt,
        params: SamplingParams,
        rid: str,
        logprobs: LogprobOptions | None,
        processor: Any,
        hidden_states: Any,
        ends: tuple[int, ...],
        *,
        sample: int,
    ) -> Request:
        if params.seed is not None:
            seed = derive_seed(params.seed, sample) if params.n > 1 else params.seed
        else:
            seed = draw_seed(self._seeds)
        # with a constraint nothing but an end is allowed where it is met, so that is one
        stops = () if params.ignore_eos and constraint_of(params) is None else ends
        max_new_tokens = self._max_new_tokens(len(prompt.ids), params.max_new_tokens)
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
            processor=resolve_processor(processor, params.custom_params),
            custom_params=dict(params.custom_params or {}),
        )
        return Request(
            rid=rid,
            token_ids=array("i", prompt.ids),
            params=params,
            max_new_tokens=max_new_tokens,
            stop_token_ids=frozenset(stops),
            sampling_row=row,
            logprobs=logprobs,
            return_hidden_states=_flag("return_hidden_states", hidden_states),
            namespace=Namespace(embeds=None if prompt.embeds is None else digest_of(prompt.embeds)),
            input_embeds=prompt.embeds,
        )

    def _ends(self, params: SamplingParams) -> tuple[int, ...]:
        """Token ids that end a request, ascending."""
        return tuple(sorted({*params.stop_token_ids, *self.eos_token_ids}))

    def _max_new_tokens(self, prompt: int, asked: int | None) -> int:
        """The effective output limit; refuses what can never fit. The last token's KV is never needed."""
        context, pool = self.limits.context_length, self.limits.pool_tokens
        if prompt >= context:
            raise RequestTooLongError(
                f"The input ({prompt} tokens) is longer than the model's context length ({context} tokens)."
                " Shorten it, or build the engine with a larger context_length if the model allows it."
            )
        if prompt > pool:
            raise RequestTooLongError(
                f"The input ({prompt} tokens) does not fit into the KV pool ({pool} tokens), even alone."
                " Shorten it, or build the engine with a larger max_total_tokens or mem_fraction_static."
            )
        if asked is None:
            return min(context - prompt, pool - prompt + 1)
        if prompt + asked > context:
            raise RequestTooLongError(
                f"Requested token count exceeds the model's maximum context length of {context} tokens."
                f" You requested a total of {prompt + asked} tokens: {prompt} tokens from the input and"
                f" {asked} tokens for the completion. Reduce one of them, or pass max_new_tokens=None to"
                " fill what is left."
            )
        if prompt + asked - 1 > pool:
            raise RequestTooLongError(
                f"The request needs room for {prompt + asked - 1} tokens ({prompt} input, {asked} new), and"
                f" the whole KV pool has {pool}. Ask for fewer, or enlarge max_total_tokens or"
                " mem_fraction_static."
            )
        return asked


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


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be a bool, got {short(value)}.")
    return value


def _texts(prompt: Any) -> tuple[list[str], bool]:
    if isinstance(prompt, str):
        return [prompt], False
    if isinstance(prompt, (list, tuple)) and all(isinstance(p, str) for p in prompt):
        return list(prompt), True
    raise InvalidRequestError(
        f"prompt must be a string or a list of strings, got {_describe(prompt)}. Token ids go into input_ids."
    )


def _id_lists(ids: Any) -> tuple[list[list[int]], bool]:
    if isinstance(ids, Mapping) and "input_ids" in ids:  # as tokenizers return them
        ids = ids["input_ids"]
    if isinstance(ids, (list, tuple)) and ids and all(isinstance(p, (list, tuple)) for p in ids):
        return [_ids(p) for p in ids], True
    return [_ids(ids)], False


def _is_nested(ids: Any) -> bool:
    return isinstance(ids, (list, tuple)) and bool(ids) and isinstance(ids[0], (list, tuple))


def _not_single() -> InvalidRequestError:
    return InvalidRequestError("submit() takes one prompt with n=1; use generate() for batches.")


def _ids(ids: Any) -> list[int]:
    if isinstance(ids, (list, tuple)) and all(type(t) is int for t in ids):
        return list(ids)
    raise InvalidRequestError(
        f"input_ids must be a list of ints or a list of such lists, got {_describe(ids)}."
    )


def _describe(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        kinds = sorted({type(v).__name__ for v in value})
        return f"a {type(value).__name__} of {' and '.join(kinds) or 'nothing'}"
    return f"{type(value).__name__}: {short(value)}"


def _per_prompt(name: str, value: Any, count: int, default: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        if len(value) != count:
            raise InvalidRequestError(f"{name} has {len(value)} entries for {count} prompts.")
        return [default if v is None else v for v in value]
    return [default if value is None else value] * count


def _logprob_options(
    wanted: Any, start: Any, top: Any, prompt_len: int, vocab_size: int
) -> LogprobOptions | None:
    if not isinstance(wanted, bool):
        raise InvalidRequestError(f"return_logprob must be a bool, got {short(wanted)}.")
    for name, value in (("logprob_start_len", start), ("top_logprobs_num", top)):
        if value is not None and type(value) is not int:
            raise InvalidRequestError(f"{name} must be an int, got {short(value)}.")
    if not wanted:
        if top or start not in (None, -1):
            raise InvalidRequestError("top_logprobs_num and logprob_start_len need return_logprob=True.")
        return None
    top = top or 0
    if not 0 <= top <= vocab_size:
        raise InvalidRequestError(f"top_logprobs_num must be in [0, {vocab_size}], got {top}.")
    if start is None or start == -1:
        return LogprobOptions(None, top)
    if not 0 <= start < prompt_len:
        raise InvalidRequestError(
            f"logprob_start_len must be in [0, {prompt_len}) for a prompt of {prompt_len} tokens, or -1"
            f" for none, got {start}."
        )
    return LogprobOptions(start, top)
