"""``python -m rootlet``, also installed as ``rootlet``. ``--help`` loads neither torch nor numpy."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from .cli import batch, bench, chat, generate
from .cli.parser import Parser
from .errors import EngineClosedError, EngineFailedError, RootletError
from .version import __version__

EXIT_USAGE = 2
EXIT_ENGINE_FAILED = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

EPILOG = """\
examples:
  rootlet batch --model SmolLM2-135M-Instruct.Q4_1.gguf --input prompts.jsonl --output answers.jsonl
  rootlet generate --model SmolLM2-135M-Instruct.Q4_1.gguf "The capital of France is"
  rootlet chat --model SmolLM2-135M-Instruct.Q4_1.gguf

rootlet COMMAND --help lists the options of a command: every engine option and sampling parameter is one.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="rootlet",
        description="An LLM inference engine you import. From the command line: jobs, single prompts, chat.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rootlet {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (batch, generate, chat, bench):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's) and return the exit code. Usage errors exit with 2."""
    args = build_parser().parse_args(argv)
    _start_logging(args.log_level)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader of a pipe has left; the interpreter must not complain about it a second time
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except RootletError as error:
        print(f"rootlet: error: {error}", file=sys.stderr)
        return EXIT_ENGINE_FAILED if isinstance(error, (EngineClosedError, EngineFailedError)) else EXIT_USAGE


def _start_logging(level: str) -> None:
    """Show our log on standard error; this process is ours, unlike one that imports the package."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rootlet").setLevel(level.upper())


if __name__ == "__main__":
    sys.exit(main())
