"""What the benchmarks run on: random token ids, ShareGPT conversations, generated shared prefixes."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, JobError
from .options import engine_options


@dataclass(frozen=True)
class BenchRequest:
    """A prompt as token ids and how many tokens to generate."""

    input_ids: list[int]
    output_len: int


class Ids:
    """Draws random token ids of a vocabulary, repeatably."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self._vocab_size = vocab_size

    def draw(self, length: int) -> list[int]:
        """``length`` ids."""
        return self.rng.choices(range(self._vocab_size), k=length)


def engine_settings(args: argparse.Namespace, *, ids_only: bool) -> dict[str, Any]:
    """Engine options of the command line. Dummy weights go without a tokenizer when only ids are needed."""
    settings = engine_options(args)
    if ids_only and settings.get("load_format") == "dummy":
        settings["skip_tokenizer_init"] = True
    return settings


def ids_of(engine: Any, args: argparse.Namespace, seed: int) -> Ids:
    """Random ids for a model: of its tokenizer's vocabulary, or without one of its ``config.json``'s."""
    if engine.tokenizer is not None:
        return Ids(engine.tokenizer.vocab_size, seed)
    from ..models.loader import resolve_model

    settings = engine_settings(args, ids_only=True)
    names = ("load_format", "revision", "download_dir")
    source = resolve_model(args.model, **{name: settings[name] for name in names if name in settings})
    config = json.loads((source.path / "config.json").read_text())
    config |= json.loads(settings.get("json_model_override_args", "{}"))
    return Ids(config["vocab_size"], seed)


def random_requests(
    ids: Ids, count: int, input_len: int, output_len: int, range_ratio: float, texts: list[list[int]]
) -> list[BenchRequest]:
    """Lengths uniform between ``range_ratio`` times the given ones and those themselves.

    Prompts are random ids, or ``texts`` one after the other, each cut or repeated to its length.
    """
    inputs = [ids.rng.randint(max(int(input_len * range_ratio), 1), input_len) for _ in range(count)]
    outputs = [ids.rng.randint(max(int(output_len * range_ratio), 1), output_len) for _ in range(count)]
    requests = []
    for i, (length, new) in enumerate(zip(inputs, outputs)):
        if texts:
            text = texts[i % len(texts)]
            prompt = (text * -(-length // len(text)))[:length]
        else:
            prompt = ids.draw(length)
        requests.append(BenchRequest(prompt, new))
    return requests


def shared_prefix_requests(
    ids: Ids, groups: int, per_group: int, prefix_len: int, question_len: int, output_len: int
) -> list[BenchRequest]:
    """Groups that share their first ``prefix_len`` tokens, in random order."""
    requests = []
    for _ in range(groups):
        prefix = ids.draw(prefix_len)
        requests += [BenchRequest(prefix + ids.draw(question_len), output_len) for _ in range(per_group)]
    ids.rng.shuffle(requests)
    return requests


def read_sharegpt(path: str, seed: int) -> list[tuple[str, str]]:
    """First question and answer of every conversation of a ShareGPT file, in random order.

    Raises JobError when the file cannot be read or holds no conversation.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
        turns = [entry.get("conversations", entry.get("conversation", [])) for entry in entries]
        pairs = [(turn[0]["value"], turn[1]["value"]) for turn in turns if len(turn) >= 2]
    except OSError as error:
        raise JobError(f"--dataset-path {path} cannot be read: {error.strerror}.") from error
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise JobError(
            f"--dataset-path {path} is not a ShareGPT file (a JSON list of objects with 'conversations', each"
            f" a list of objects with 'value'): {error!r}."
        ) from error
    if not pairs:
        raise JobError(f"--dataset-path {path} holds no conversation of two turns or more.")
    random.Random(seed).shuffle(pairs)
    return pairs


def sharegpt_requests(
    engine: Any,
    pairs: list[tuple[str, str]],
    count: int,
    *,
    output_len: int | None,
    context_len: int | None,
    chat: bool,
) -> list[BenchRequest]:
    """Up to ``count`` of the conversations; the outputs are as long as the answers, or ``output_len``.

    Left out are prompts and answers of fewer than two tokens and what exceeds ``context_len`` in all.
    """
    from ..engine.chat.conversation import Conversation

    requests: list[BenchRequest] = []
    for question, answer in pairs:
        if len(requests) == count:
            break
        if chat:
            prompt = engine.chat_renderer.encode(Conversation.from_pairs([("user", question)])).token_ids
        else:
            prompt = engine.tokenizer.encode(question)
        new = output_len or len(engine.tokenizer.encode(answer))
        if min(len(prompt), new) >= 2 and (context_len is None or len(prompt) + new <= context_len):
            requests.append(BenchRequest(prompt, new))
    if not requests:
        raise JobError("The dataset holds no conversation of the lengths asked for.")
    return requests


def require_positive(name: str, value: int | None) -> None:
    """Raise ConfigError unless an option is unset or at least 1."""
    if value is not None and value < 1:
        raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")


@contextlib.contextmanager
def profiled(path: str) -> Iterator[None]:
    """Write a chrome trace of what runs inside to ``path``."""
    from torch.profiler import profile

    with profile() as profiler:
        yield
    profiler.export_chrome_trace(path)
    print(f"torch profiler chrome trace saved to {path}")
