"""JSON-Schema-Test-Suite against both backends: nothing that a schema forbids may pass.

    python benchmarks/json_schema_suite.py TESTS            # its folder ``tests``: drafts 2020-12 and 7
    python benchmarks/json_schema_suite.py TESTS --drafts '["draft4"]'

The suite is in the source archive of PyPI's ``jsonschema`` (``json/tests``). Every instance of every schema
that is accepted is run through the matchers in the form that ``json.dumps`` writes, the optional parts
included. Valid instances that are turned away are counted: most have properties that are not declared, a type
that no keyword speaks of, or another order of properties than the schema. Ends with status 1 if anything
invalid passed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from json_schema_bench import matches, reason, vocabulary_of
from tqdm import tqdm

from rootlet.errors import GrammarError
from rootlet.grammar.constraint import Constraint
from rootlet.grammar.llguidance_backend import LlguidanceBackend
from rootlet.grammar.xgrammar_backend import XGrammarBackend

ADDRESSES = {
    "draft3": "http://json-schema.org/draft-03/schema#",
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--drafts", type=json.loads, default=["draft2020-12", "draft7"])
    parser.add_argument("--open", action="store_true", help="with x-open: true in every schema")
    args = parser.parse_args()
    vocabulary = vocabulary_of(None)
    backends = [backend(lambda: vocabulary) for backend in (XGrammarBackend, LlguidanceBackend)]
    failed = False
    for draft in args.drafts:
        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for path in tqdm(sorted((args.folder / draft).rglob("*.json"))):
            for case in json.loads(path.read_text(encoding="utf-8")):
                schema = case["schema"]
                if isinstance(schema, dict):
                    named = {"$schema": ADDRESSES[draft]} if draft in ADDRESSES else {}
                    schema = named | schema | ({"x-open": True} if args.open else {})
                try:
                    grammars = [
                        backend.compile(Constraint("json_schema", json.dumps(schema))) for backend in backends
                    ]
                except GrammarError as error:
                    counts["schemas refused"] += 1
                    reasons[reason(str(error))] += 1
                    continue
                counts["schemas accepted"] += 1
                for test in case["tests"]:
                    what = told(test, grammars, vocabulary)
                    counts[what] += 1
                    if what == "INVALID LET THROUGH":
                        failed = True
                        tqdm.write(f"{path.name}: {case['description']}: {test['description']}")
        print(draft, json.dumps(counts, indent=1), json.dumps(dict(reasons.most_common()), indent=1))
    sys.exit(failed)


def told(test: dict, grammars: list, vocabulary: Any) -> str:
    try:
        data = json.dumps(test["data"], ensure_ascii=False).replace("\x7f", "\\u007f").encode()
    except UnicodeEncodeError:
        return "instances that UTF-8 cannot carry"
    passed = [matches(grammar.matcher(), data, vocabulary) for grammar in grammars]
    if not test["valid"]:
        return "INVALID LET THROUGH" if any(passed) else "invalid instances rejected"
    return "valid instances accepted" if all(passed) else "valid instances turned away"


if __name__ == "__main__":
    main()
