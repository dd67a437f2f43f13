"""``rootlet bench``: how fast a model runs here."""

from __future__ import annotations

import argparse

from . import bench_offline, bench_one_batch

EPILOG = """\
examples:
  rootlet bench one-batch --model M --load-format dummy --batch-size 1 16 --input-len 256 --output-len 32
  rootlet bench offline --model M --dataset-name random --num-prompts 100 --random-output-len 256
  rootlet bench shared-prefix --model M --gsp-num-groups 8 --gsp-prompts-per-group 16

rootlet bench KIND --help lists the options of a kind. --load-format dummy needs only a config.json.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the ``bench`` command with its kinds."""
    parser = commands.add_parser(
        "bench",
        help="measure speed: one-batch, offline, shared-prefix",
        description="Measure how fast a model runs on this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(title="kinds", required=True, metavar="KIND")
    bench_one_batch.add_parser(kinds)
    bench_offline.add_parser(kinds)
    bench_offline.add_shared_prefix_parser(kinds)
