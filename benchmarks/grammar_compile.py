"""What it costs to compile constraints of some size, and to fill their masks.

    python benchmarks/grammar_compile.py MODEL            # with the tokenizer of a model
    python benchmarks/grammar_compile.py MODEL --only 'open objects, 60 names'

CPU seconds of the whole process for one compilation, then masks along a random walk of 60 tokens: the median
and the slowest, in milliseconds. What is refused is shown as such.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
from cpu import machine

from rootlet.engine.replies.token_text import TokenPieces
from rootlet.engine.requests.constraints import _cut, _vocabulary
from rootlet.errors import GrammarError
from rootlet.grammar.budget import Budget
from rootlet.grammar.constraint import Constraint
from rootlet.grammar.llguidance_backend import LlguidanceBackend
from rootlet.grammar.xgrammar_backend import XGrammarBackend
from rootlet.models.tokenizer import load_tokenizer

RESULTS = Path(__file__).parent / "results" / "grammar_compile.json"
SIDES = ("left", "right", "upper", "lower", "inner", "outer", "first", "second", "third", "last")
NAMES = [
    f"{side}_{what}" for side in SIDES for what in ("speed", "width", "colour", "count", "name", "limit")
]
TEXT, WHOLE = {"type": "string"}, {"type": "integer"}


def mapping(names: list[str], of: dict, **keywords: object) -> dict:
    """An object of these properties."""
    return {"type": "object", "properties": dict.fromkeys(names, of), **keywords}


def numbered(count: int) -> list[str]:
    """So many names."""
    return [f"p{i}" for i in range(count)]


CASES: dict[str, tuple[str, object]] = {
    **{
        f"open object, {count} names": (
            "json_schema",
            mapping(NAMES[:count], TEXT, additionalProperties=True),
        )
        for count in (30, 60)
    },
    **{
        f"maxLength {length}": (
            "json_schema",
            mapping(["t"], TEXT | {"maxLength": length}, required=["t"]),
        )
        for length in (256, 1024, 4096)
    },
    "1,000 optional properties": ("json_schema", mapping(numbered(1000), WHOLE)),
    "500 required properties": ("json_schema", mapping(numbered(500), WHOLE, required=numbered(500))),
    "10,000 texts as values": ("json_schema", {"enum": [f"value number {i}" for i in range(10_000)]}),
    "10,000 numbers as values": ("json_schema", {"enum": list(range(10_000))}),
    "10,000 values of both kinds": (
        "json_schema",
        {"enum": [f"v{i}" if i % 3 else i for i in range(10_000)]},
    ),
    "200 objects told apart by a constant": (
        "json_schema",
        {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {"kind": {"const": f"k{i}"}, "v": WHOLE},
                    "required": ["kind"],
                }
                for i in range(200)
            ]
        },
    ),
    "2,000 definitions": (
        "json_schema",
        {
            "$defs": {f"d{i}": mapping(["a"], {"$ref": f"#/$defs/d{(i + 1) % 2000}"}) for i in range(2000)},
            "$ref": "#/$defs/d0",
        },
    ),
    "2 MB of descriptions": (
        "json_schema",
        mapping(["a"], TEXT | {"description": "y" * 10**6}, description="x" * 10**6),
    ),
    "lists of 1,000 lists of 1,000": (
        "json_schema",
        {
            "type": "array",
            "items": {"type": "array", "items": WHOLE, "minItems": 1000, "maxItems": 2000},
            "minItems": 1000,
            "maxItems": 2000,
        },
    ),
    "a pattern of counts": ("json_schema", TEXT | {"pattern": "^([a-z]{1,20}-[0-9]{1,20}/){1,20}$"}),
    "a choice of 10,000": ("choice", [f"option text {i}" for i in range(10_000)]),
    "a regex of 2,000 options": ("regex", "|".join(f"word{i}[a-z]+" for i in range(2000))),
}


def measured(backend, constraint: Constraint, width: int) -> dict:
    """One compilation and one walk."""
    start = time.process_time()
    try:
        grammar = backend.compile(constraint, Budget())
    except GrammarError as error:
        return {"cpu_s": round(time.process_time() - start, 3), "refused": str(error)[:120]}
    cpu = time.process_time() - start
    matcher, draw = grammar.matcher(), random.Random(1)
    masks, times = np.zeros((1, -(-width // 32)), np.int32), []
    for _ in range(60):
        begin = time.perf_counter()
        matcher.fill(masks, 0)
        times.append(1e3 * (time.perf_counter() - begin))
        allowed = np.nonzero(np.unpackbits(masks.view(np.uint8), bitorder="little")[:width])[0]
        if not matcher.accept(int(draw.choice(allowed))) or matcher.is_terminated:
            break
    return {
        "cpu_s": round(cpu, 3),
        "mb": round(grammar.size / 1e6, 1),
        "mask_ms": round(statistics.median(times), 3),
        "slowest_mask_ms": round(max(times), 2),
    }


def main() -> None:
    """Measure all cases on both backends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--only")
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model)
    pieces, width = TokenPieces.of(tokenizer), len(tokenizer)
    make = _vocabulary(partial(_cut, tokenizer, pieces), pieces, width, (tokenizer.eos_token_id,))
    backends = {"xgrammar": XGrammarBackend(make), "llguidance": LlguidanceBackend(make)}
    for backend in backends.values():
        backend.compile(Constraint("regex", "a"), Budget())  # loads what is loaded once
    rows = []
    for name, (kind, value) in CASES.items():
        if options.only not in (None, name):
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        for which, backend in backends.items():
            rows.append({"case": name, "backend": which} | measured(backend, Constraint(kind, text), width))
            print(json.dumps(rows[-1]), flush=True)
    if options.only is None:
        RESULTS.write_text(
            json.dumps({"machine": machine(), "vocabulary": width, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
