"""The tokenizer that a GGUF file describes, as a ``transformers`` fast tokenizer.

A GGUF holds the vocabulary under ``tokenizer.ggml.*`` and names the algorithm rather than spelling it
out (GGUF specification, ``docs/gguf.md``; llama.cpp ``src/llama-vocab.cpp``). Two kinds are known:
``gpt2``, byte-level BPE whose splitting rule is ``tokenizer.ggml.pre``, and ``llama``, SentencePiece BPE
with scores. Where llama.cpp and the tokenizer a model was trained with differ, the latter counts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from ..errors import ModelError
from .fields import shorten
from .loader.gguf_file import GGUFFile, read_gguf

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger("rootlet.models")

# token types of the specification; anything else is an ordinary piece
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6

_MAX_TOKEN_LENGTH: Final = 4096  # every cut of a token in two is looked at

_SPACE: Final = "\u2581"
"""How SentencePiece spells a space inside a piece."""

_NUMBERED: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _SplitRule:
    """How text is cut before byte-level BPE runs on each piece.

    ``pattern`` is the regular expression of a piece, None for GPT-2's own. ``single_digits`` cuts digits
    apart first. ``whole_words`` takes a piece that is a token as it is, without merging up to it. ``nfc``
    composes characters first. ``adds_bos`` is the default of files that do not say.
    """

    pattern: str | None = None
    single_digits: bool = False
    whole_words: bool = False
    nfc: bool = False
    adds_bos: bool = False


_GPT2: Final = _SplitRule()
_LLAMA3: Final = _SplitRule(_NUMBERED % "{1,3}", whole_words=True, adds_bos=True)
_QWEN2: Final = _NUMBERED % ""

# value of tokenizer.ggml.pre -> rule, as the tokenizer.json files of these models have it
_SPLIT_RULES: Final = {
    "gpt-2": _GPT2,
    "smollm": _SplitRule(single_digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "qwen2": _SplitRule(_QWEN2, nfc=True),
    "deepseek-r1-qwen": _SplitRule(_QWEN2),
    "tekken": _SplitRule(_TEKKEN, whole_words=True, adds_bos=True),
}


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer described by the GGUF file ``path``.

    Special tokens, chat template(s) and whether BOS and EOS are added come from the file. Raises
    ModelError if the file has no tokenizer or one of another kind, WeightsError if it is damaged.
    """
    file = read_gguf(path)
    vocab = _read_vocabulary(file)
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        rule = _split_rule(file)
        backend = _byte_level_bpe(vocab, rule)
        adds_bos, named = rule.adds_bos, {}
    elif kind == "llama":
        backend = _sentencepiece_bpe(vocab, file.metadata.get("tokenizer.ggml.add_space_prefix", True))
        # what SentencePiece numbers them where the file is silent
        adds_bos, named = True, {"unk_token": 0, "bos_token": 1, "eos_token": 2}
    else:
        raise ModelError(f"{path}: tokenizer kind {kind!r} is not supported; supported: gpt2, llama.")
    named = {**named, **_named_special_ids(file, len(vocab.tokens))}
    _add_tokens(backend, vocab, set(named.values()))
    return _wrap(file, backend, vocab, named, adds_bos)


@dataclass(frozen=True)
class _Vocabulary:
    """The token table: index is id. ``scores`` and ``merges`` are empty if the kind has none."""

    path: Path
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[str]

    @property
    def ids(self) -> dict[str, int]:
        return {token: index for index, token in reversed(list(enumerate(self.tokens)))}


def _read_vocabulary(file: GGUFFile) -> _Vocabulary:
    def array(name: str) -> list:
        value = file.metadata.get(f"tokenizer.ggml.{name}", [])
        if not isinstance(value, list):
            raise ModelError(f"{file.path}: tokenizer.ggml.{name} must be an array, got {value!r}.")
        return value

    tokens = array("tokens")
    if not tokens:
        raise ModelError(f"{file.path}: the file has no tokenizer (tokenizer.ggml.tokens is missing).")
    types = array("token_type") or [1] * len(tokens)
    scores = array("scores")
    for name, values in (("token_type", types), ("scores", scores or tokens)):
        if len(values) != len(tokens):
            raise ModelError(f"{file.path}: {len(tokens)} tokens but {len(values)} entries in {name}.")
    merges = array("merges")
    kinds: dict[str, tuple[list, type | tuple[type, ...], str]] = {
        "tokens": (tokens, str, "texts"),
        "token_type": (types, int, "integers"),
        "scores": (scores, (int, float), "numbers"),
        "merges": (merges, str, "texts"),
    }
    for name, (values, kind, words) in kinds.items():
        if not all(isinstance(value, kind) for value in values):
            raise ModelError(f"{file.path}: tokenizer.ggml.{name} must be an array of {words}.")
    longest = max(map(len, tokens))
    if longest > _MAX_TOKEN_LENGTH:
        raise ModelError(
            f"{file.path}: a token of {longest} characters; at most {_MAX_TOKEN_LENGTH} will do."
        )
    return _Vocabulary(file.path, tokens, types, scores, merges)


def _split_rule(file: GGUFFile) -> _SplitRule:
    name = file.metadata.get("tokenizer.ggml.pre")
    if name in (None, "default"):  # both mean that the converter did not know
        logger.warning(
            "%s does not say how its tokenizer splits text (tokenizer.ggml.pre); GPT-2's rule is used. "
            "If output looks odd, convert the model again with a newer converter.",
            file.path,
        )
        return _GPT2
    if name not in _SPLIT_RULES:
        known = ", ".join(sorted(_SPLIT_RULES))
        raise ModelError(f"{file.path}: tokenizer.ggml.pre {name!r} is not supported; supported: {known}.")
    return _SPLIT_RULES[name]


def _byte_level_bpe(vocab: _Vocabulary, rule: _SplitRule) -> Tokenizer:
    """GPT-2's BPE: bytes spelled as printable characters, merges in the order of the file."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    if not vocab.merges:
        raise ModelError(f"{vocab.path}: a gpt2 tokenizer needs tokenizer.ggml.merges.")
    parts = [tuple(merge.split(" ")) for merge in vocab.merges]
    merges = cast("list[tuple[str, str]]", parts)  # the library refuses what is no pair
    tokenizer = Tokenizer(_build_bpe(BPE, vocab, merges, ignore_merges=rule.whole_words))
    if rule.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if rule.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rule.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(rule.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(vocab: _Vocabulary, adds_space: object) -> Tokenizer:
    """SentencePiece's BPE: the whole text is one word, unknown characters become byte tokens.

    A space is put in front of each text, also of one that starts with a space, by a normalizer:
    ``Metaspace``, the other usual way, leaves texts that start with a space as they are.
    """
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    unknown = next((t for t, kind in zip(vocab.tokens, vocab.types) if kind == _UNKNOWN), None)
    model = _build_bpe(
        BPE, vocab, _merges_from_scores(vocab), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    replace = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), replace] if adds_space else [replace]
    )
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if adds_space else steps)
    return tokenizer


def _merges_from_scores(vocab: _Vocabulary) -> list[tuple[str, str]]:
    """The merge list equivalent to SentencePiece's scores.

    SentencePiece joins the two neighbours whose union has the best score. So every way of cutting a
    piece into two pieces is a merge, ranked by the score of the whole.
    """
    if not vocab.scores:
        raise ModelError(f"{vocab.path}: a llama tokenizer needs tokenizer.ggml.scores.")
    not_merged = (_UNKNOWN, _CONTROL, _BYTE)
    ids = {token: i for token, i in vocab.ids.items() if vocab.types[i] not in not_merged}
    ranked = sorted(ids.items(), key=lambda item: (-vocab.scores[item[1]], item[1]))
    merges = []
    for token, _ in ranked:
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        cuts = [(left, right) for left, right in cuts if left in ids and right in ids]
        merges += sorted(cuts, key=lambda cut: (ids[cut[0]], ids[cut[1]]))
    return merges


def _build_bpe(bpe: type[BPE], vocab: _Vocabulary, merges: list[tuple[str, str]], **options: Any) -> BPE:
    try:
        return bpe(vocab=vocab.ids, merges=merges, **options)
    except Exception as error:  # the library raises Exception itself for a merge of unknown tokens
        raise ModelError(f"{vocab.path}: vocabulary and merges do not fit together: {error}.") from error


def _named_special_ids(file: GGUFFile, num_tokens: int) -> dict[str, int]:
    """Role ("bos_token", ...) -> id, of the roles the file names."""
    keys = {
        "bos_token": "bos_token_id",
        "eos_token": "eos_token_id",
        "unk_token": "unknown_token_id",
        "pad_token": "padding_token_id",
    }
    found: dict[str, int] = {}
    for role, key in keys.items():
        index = file.metadata.get(f"tokenizer.ggml.{key}")
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < num_tokens:
            raise ModelError(
                f"{file.path}: {role} has the id {shorten(index)}, outside a vocabulary of {num_tokens}."
            )
        found[role] = index
    return found


def _add_tokens(backend: Tokenizer, vocab: _Vocabulary, named_ids: set[int]) -> None:
    """Register the tokens that are matched whole in the text: control tokens and user-defined ones."""
    from tokenizers import AddedToken

    special, plain = [], []
    for index, (token, kind) in enumerate(zip(vocab.tokens, vocab.types)):
        if kind in (_CONTROL, _UNKNOWN) or index in named_ids:
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == _USER_DEFINED:
            plain.append(AddedToken(token, special=False, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)


def _wrap(
    file: GGUFFile, backend: Tokenizer, vocab: _Vocabulary, named: dict[str, int], adds_bos: bool
) -> PreTrainedTokenizerFast:
    """Put the transformers interface around ``backend``; ``adds_bos`` holds where the file is silent."""
    from transformers import PreTrainedTokenizerFast

    roles = {role: vocab.tokens[index] for role, index in named.items()}
    adds = {
        "bos_token": bool(file.metadata.get("tokenizer.ggml.add_bos_token", adds_bos)),
        "eos_token": bool(file.metadata.get("tokenizer.ggml.add_eos_token", False)),
    }
    for role, wanted in adds.items():
        if wanted and role not in roles:
            raise ModelError(
                f"{file.path}: the tokenizer adds a {role} to each text, but the file names none."
            )
        if wanted and roles[role].startswith("$"):  # the templates of tokenizers take it for a place
            raise ModelError(f"{file.path}: the {role} {shorten(roles[role])} cannot begin with a $.")
    _set_template(backend, named, roles, adds)
    others = [
        token
        for token, kind in zip(vocab.tokens, vocab.types)
        if kind == _CONTROL and token not in roles.values()
    ]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=_chat_template(file),
        clean_up_tokenization_spaces=False,
        additional_special_tokens=others,
        add_bos_token=adds["bos_token"],
        add_eos_token=adds["eos_token"],
        **roles,
    )


def _set_template(
    backend: Tokenizer, named: dict[str, int], roles: dict[str, str], adds: dict[str, bool]
) -> None:
    """Add BOS and EOS around each text: transformers 5 does it by its own flags, 4 does not."""
    from tokenizers import processors

    bos = [f"{roles['bos_token']}:0"] if adds["bos_token"] else []
    eos = [f"{roles['eos_token']}:0"] if adds["eos_token"] else []
    backend.post_processor = processors.TemplateProcessing(
        single=[*bos, "$A:0", *eos],
        pair=[
            *bos,
            "$A:0",
            *eos,
            *(token[:-1] + "1" for token in bos),
            "$B:1",
            *(token[:-1] + "1" for token in eos),
        ],
        special_tokens=[(roles[role], named[role]) for role, wanted in adds.items() if wanted],
    )


def _chat_template(file: GGUFFile) -> str | dict[str, str] | None:
    """The chat template, or all of them by name if the file has several."""
    template = file.metadata.get("tokenizer.chat_template")
    if not isinstance(template, (str, type(None))):
        raise ModelError(f"{file.path}: tokenizer.chat_template must be a text, got {shorten(template)}.")
    names = file.metadata.get("tokenizer.chat_templates")
    if not isinstance(names, list):
        return template
    given = {name: file.metadata.get(f"tokenizer.chat_template.{name}") for name in names}
    several = {name: text for name, text in given.items() if isinstance(text, str)}
    if template is not None:
        several["default"] = template
    return several or None
