"""``python -m tests.abuse fuzz | kills | soak``, from the repository's root: what tests do briefly.

Each prints its seed and what came of it; the exit code is 1 if anything was wrong. Ctrl-C prints what was
found so far.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

from .process import give_back


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.abuse", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    fuzz = kinds.add_parser("fuzz", help="fuzzed requests against one engine")
    fuzz.add_argument("--requests", type=int, default=10_000)
    fuzz.add_argument("--threads", type=int, default=6)
    fuzz.add_argument("--timeout", type=float, default=120.0, help="seconds after which a request hangs")
    fuzz.add_argument("--only", type=int, help="number of the one request to make")
    fuzz.add_argument("--skip", nargs="*", default=(), help="kinds of requests to leave out (see cases.py)")
    kills = kinds.add_parser("kills", help="jobs killed at random moments and resumed")
    kills.add_argument("--kills", type=int, default=200)
    soak = kinds.add_parser("soak", help="ever-new grammars and plain requests, memory printed each minute")
    soak.add_argument("--minutes", type=float, default=30.0)
    for kind in (fuzz, kills, soak):
        kind.add_argument("--seed", type=int, default=None, help="default: drawn")
    args = parser.parse_args()
    if args.kind != "kills":
        give_back()
    seed = random.randrange(10**6) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if args.kind == "fuzz":
            from .fuzz import Fuzz

            options = {"threads": args.threads, "timeout": args.timeout, "only": args.only}
            work = Fuzz(args.requests, seed, skip=tuple(args.skip), **options)
        elif args.kind == "kills":
            from .kills import Kills

            work = Kills(args.kills, seed)
        else:
            from .soak import Soak

            work = Soak(args.minutes * 60, seed)
        try:
            work.run(Path(folder))
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
        print(work.report, flush=True)
    # a thread that hangs must not keep the process
    os._exit(1 if work.report.failures else 0)


main()
