"""How many published JSON schemas are taken exactly, why others are refused, and what both backends cost.

    python benchmarks/json_schema_bench.py FOLDER                 # splits: subfolders of *.json, or *.jsonl
    python benchmarks/json_schema_bench.py FOLDER --every 10      # every tenth schema of a split
    python benchmarks/json_schema_bench.py FOLDER --check 10      # rules for all, backends for every tenth
    python benchmarks/json_schema_bench.py FOLDER --model MODEL   # times over the tokens of this model
    python benchmarks/json_schema_bench.py FOLDER --out results/json_schema_bench.json

A file is a schema, or an object with ``schema`` (or ``json_schema``, a schema or its text) and perhaps
``tests``: ``[{"data": ..., "valid": true | false}]``. A split of JSONSchemaBench is a subfolder of its
``data``. For each schema that is accepted random outputs of both backends are judged by ``jsonschema``, and
given instances are run through the matchers in the form that ``json.dumps`` writes. Install
``jsonschema[format]`` for it to know all formats. What takes longer than ``--seconds`` ends with its process
and counts as refused.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import multiprocessing
import random
import re
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rootlet.errors import GrammarError
from rootlet.grammar.constraint import Constraint
from rootlet.grammar.interface import Vocabulary
from rootlet.grammar.llguidance_backend import LlguidanceBackend
from rootlet.grammar.xgrammar_backend import XGrammarBackend

WORDS = (
    '{"',
    '": ',
    '": "',
    '", "',
    ", ",
    "true",
    "false",
    "null",
    "[]",
    "{}",
    "0",
    "1",
    "00",
    "ab",
    "http",
    "://",
)
MAX_TOKENS = 400
SLOW_MASKS = 40  # of each schema that many masks are timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--model", help="GGUF file or folder whose tokens are used; default: bytes and a few words"
    )
    parser.add_argument("--every", type=int, default=1, help="take one of so many schemas of a split")
    parser.add_argument("--check", type=int, default=1, help="compile and walk one of so many")
    parser.add_argument("--walks", type=int, default=2, help="random outputs of each backend")
    parser.add_argument("--seconds", type=float, default=60, help="for one schema")
    parser.add_argument("--out", type=Path, help="file for the results")
    args = parser.parse_args()
    splits: dict[str, list] = {}
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(Worker(args)) as worker:
        for split, name, case in tqdm([*cases(args.folder, args.every)]):
            rows = splits.setdefault(split, [])
            rows.append({"name": name} | worker.result(case | {"checked": len(rows) % args.check == 0}))
    report = {split: summary(rows) for split, rows in splits.items()}
    report["all"] = summary([row for rows in splits.values() for row in rows])
    print(json.dumps(report, indent=2))
    if args.out:
        head = {
            "commit": subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
            ).stdout.strip(),
            "date": datetime.date.today().isoformat(),
            "options": {
                "every": args.every,
                "walks": args.walks,
                "tokens": "of a model" if args.model else "bytes",
            },
        }
        args.out.write_text(json.dumps(head | {"splits": report}, indent=1) + "\n")


def cases(folder: Path, every: int) -> Iterator[tuple[str, str, dict]]:
    """(split, name, {"schema", "tests"}) of all files."""
    for split in sorted(path for path in folder.iterdir() if path.is_dir()) or [folder]:
        for path in sorted(split.rglob("*.json"))[::every]:
            with contextlib.suppress(ValueError):  # no JSON
                yield split.name, path.stem, case_of(json.loads(path.read_text()))
    for path in sorted(folder.glob("*.jsonl")):
        for i, line in enumerate(path.read_text().splitlines()[::every]):
            yield path.stem, str(i), case_of(json.loads(line))


def case_of(given: Any) -> dict:
    if isinstance(given, dict):
        schema = given.get("schema", given.get("json_schema"))
        if isinstance(schema, str):
            schema = json.loads(schema)
        if isinstance(schema, (dict, bool)) and (
            "tests" in given or "json_schema" in given or len(given) == 1
        ):
            return {"schema": schema, "tests": given.get("tests", [])}
    return {"schema": given, "tests": []}


class Worker:
    """A process that tries schemas, and is replaced if one takes too long."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._process: multiprocessing.Process | None = None

    def result(self, case: dict) -> dict:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._here, there = context.Pipe()
            self._process = context.Process(target=work, args=(there, self._args.model, self._args.walks))
            self._process.start()
            self._here.recv()  # ready
        self._here.send(case)
        try:
            if self._here.poll(self._args.seconds):
                return self._here.recv()
        except EOFError:  # it ended itself
            self.close()
            return {"refused": "the process ended"}
        self.close()
        return {"refused": f"longer than {self._args.seconds:g} s"}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def work(connection: Any, model: str | None, walks: int) -> None:
    vocabulary = vocabulary_of(model)
    backends = {
        "xgrammar": XGrammarBackend(lambda: vocabulary),
        "llguidance": LlguidanceBackend(lambda: vocabulary),
    }
    for backend in backends.values():
        backend.compile(Constraint("json_schema", "true"))
    connection.send("ready")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            case = connection.recv()
            connection.send(tried(case, backends, vocabulary, walks))


def vocabulary_of(model: str | None) -> Vocabulary:
    if model is None:
        tokens = [*(bytes([byte]) for byte in range(256)), b"", *(word.encode() for word in WORDS)]
        return Vocabulary(tokens, (256,), lambda text: list(text.encode()))
    from rootlet.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    end = tokenizer.eos_token_id
    hidden = set(tokenizer.all_special_ids)
    tokens = [b"" if i in hidden else tokenizer.decode([i]).encode() for i in range(len(tokenizer))]
    return Vocabulary(tokens, (end,), lambda text: tokenizer.encode(text, add_special_tokens=False))


def tried(case: dict, backends: dict, vocabulary: Vocabulary, walks: int) -> dict:
    """What came of a schema."""
    constraint = Constraint("json_schema", json.dumps(case["schema"]))
    row: dict[str, Any] = {}
    try:
        begin = time.thread_time()
        constraint.rules()
        row["rules_ms"] = 1e3 * (time.thread_time() - begin)
        if case["checked"]:
            row |= checked(constraint, case, backends, vocabulary, walks)
    except GrammarError as error:
        return {"refused": reason(str(error)), "message": str(error)[:300]}
    except Exception as error:  # what must not happen is a figure too
        return {"refused": f"crash: {type(error).__name__}", "message": str(error)[:300]}
    return row


def checked(constraint: Constraint, case: dict, backends: dict, vocabulary: Vocabulary, walks: int) -> dict:
    """What both backends make of a schema."""
    judge = Judge(case["schema"])
    row: dict[str, Any] = {
        "compile_ms": {}, "mask_us": {}, "ended": 0, "unjudged": 0, "invalid": [], "turned_away": 0
    }  # fmt: skip
    for name, backend in backends.items():
        begin = time.perf_counter()
        grammar = backend.compile(constraint)
        row["compile_ms"][name] = 1e3 * (time.perf_counter() - begin)
        row["mask_us"][name] = []
        for seed in range(walks):
            text, ended = walk(grammar.matcher(), random.Random(seed), vocabulary, row["mask_us"][name])
            row["ended"] += ended
            if ended:
                verdict = judge(text)
                row["unjudged"] += verdict is None
                row["invalid"] += [text.decode(errors="replace")[:300]] * (verdict is False)
        for test in case["tests"]:
            data = json.dumps(test["data"], ensure_ascii=False).encode(errors="replace")
            accepted = matches(grammar.matcher(), data, vocabulary)
            row["invalid"] += [data.decode()[:300]] * (accepted and not test["valid"])
            row["turned_away"] += test["valid"] and not accepted
            row["instances"] = row.get("instances", 0) + 1
    return row


def walk(matcher: Any, draw: random.Random, vocabulary: Vocabulary, times: list) -> tuple[bytes, bool]:
    """A random output, and whether it came to its end."""
    mask = np.zeros((1, -(-len(vocabulary.tokens) // 32)), dtype=np.int32)
    text, end = b"", vocabulary.stop_token_ids[0]
    for step in range(MAX_TOKENS):
        begin = time.perf_counter()
        matcher.fill(mask, 0)
        if len(times) < SLOW_MASKS:
            times.append(1e6 * (time.perf_counter() - begin))
        allowed = np.nonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(vocabulary.tokens)])[
            0
        ]
        if end in allowed and (len(allowed) == 1 or draw.random() < 0.5):
            assert matcher.accept(end)
            return text, True
        rest = allowed[allowed != end]
        if not len(rest):
            raise AssertionError(f"nothing may follow {text!r}")
        ends = [t for t in rest[:400] if vocabulary.tokens[t][:1] in (b'"', b"}", b"]")]
        token = int(
            draw.choice(ends) if ends and draw.random() < 0.3 + step / MAX_TOKENS else draw.choice(rest)
        )
        assert matcher.accept(token)
        text += vocabulary.tokens[token]
    return text, False


def matches(matcher: Any, data: bytes, vocabulary: Vocabulary) -> bool:
    for byte in data:
        token = BYTES.setdefault(byte, vocabulary.tokens.index(bytes([byte])))
        if not matcher.accept(token):
            return False
    return matcher.accept(vocabulary.stop_token_ids[0])


BYTES: dict[int, int] = {}


class Judge:
    """``jsonschema``, by the draft that a schema names; numbers are decimal where fractions are divided."""

    def __init__(self, schema: Any) -> None:
        from jsonschema import Draft4Validator, Draft202012Validator
        from jsonschema.validators import validator_for

        kind = validator_for(schema, default=Draft202012Validator)
        if (
            kind is Draft202012Validator
            and not validates(kind, schema)
            and validates(Draft4Validator, schema)
        ):
            kind = Draft4Validator  # it names no draft and is of an older one
        # jsonschema takes an empty pattern, which all names match, for none
        text = json.dumps(schema).replace('"patternProperties": {"":', '"patternProperties": {"^":')
        self._number = Decimal if re.search(r'"multipleOf": \d*\.\d', text) or "e-" in text else float
        self._validator = kind(json.loads(text, parse_float=self._number), format_checker=kind.FORMAT_CHECKER)

    def __call__(self, text: bytes) -> bool | None:
        """Whether a document meets the schema; None if ``jsonschema`` cannot say."""
        value = json.loads(text, parse_float=self._number)
        try:
            return self._validator.is_valid(value)
        except Exception:
            return None


def validates(kind: Any, schema: Any) -> bool:
    try:
        kind.check_schema(schema)
    except Exception:
        return False
    return True


def reason(message: str) -> str:
    """A refusal without what is its own: place, names and numbers."""
    text = re.sub(r"^json_schema at .*?: ", "", message).split(", so the request")[0]
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\{.*\}|\[.*\]", "_", text)
    text = re.sub(r"regex _ (uses|has) ", r"regex \1 ", text)
    return re.sub(r"-?\d[\d.e+-]*", "N", text.split(" (at character")[0].split(" at character")[0])[:100]


def summary(rows: list[dict]) -> dict:
    """The figures of a split."""
    accepted = [row for row in rows if "refused" not in row]
    checked = [row for row in accepted if "compile_ms" in row]
    times = {"rules_ms": spread([row["rules_ms"] for row in accepted])}
    for kind in ("compile_ms", "mask_us"):
        for backend in ("xgrammar", "llguidance"):
            values: list[float] = []
            for row in checked:
                value = row[kind][backend]
                values += value if isinstance(value, list) else [value]
            times[f"{kind} {backend}"] = spread(values)
    return {
        "schemas": len(rows),
        "accepted": len(accepted),
        "accepted_percent": round(100 * len(accepted) / max(len(rows), 1), 1),
        "refused": dict(Counter(row["refused"] for row in rows if "refused" in row).most_common()),
        "checked": len(checked),
        "outputs": sum(row["ended"] for row in checked),
        "unjudged": sum(row["unjudged"] for row in checked),
        "instances": sum(row.get("instances", 0) for row in checked),
        "invalid_let_through": sum(len(row["invalid"]) for row in checked),
        "invalid_examples": [[row["name"], row["invalid"][0]] for row in checked if row["invalid"]][:20],
        "valid_turned_away": sum(row["turned_away"] for row in checked),
        **times,
    }


def spread(values: list[float]) -> dict | None:
    if not values:
        return None
    p99 = float(np.percentile(values, 99))
    return {"median": round(statistics.median(values), 2), "p99": round(p99, 2), "max": round(max(values), 2)}


if __name__ == "__main__":
    main()
