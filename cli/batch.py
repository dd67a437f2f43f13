"""``rootlet batch``: run a JSONL job."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

from ..errors import JobError
from .options import add_engine_options, add_log_level, add_sampling_options, engine_options, sampling_params

DESCRIPTION = """\
Answer every line of a JSONL file. A line is {"id"?, "prompt" | "messages", "sampling_params"?} or an
OpenAI batch line (chat or completions); its record in the output has the same form. Records are appended
as they finish. Stopped or killed at any moment, the same command finishes exactly what is missing.
Every record has a checksum: one that was damaged since is found, and answered anew.
"""

EPILOG = """\
exit code:
  0 all lines answered; 1 the job is finished, but some records are errors; 2 the job cannot start or
  resume, or the disk failed; 3 the engine failed; 130 stopped by Ctrl-C. After a failure of the disk, 3 and
  130 run the same command to go on.
  With --verify: 0 all records are as they were written; 1 some are not; 2 the file cannot be read.

examples:
  rootlet batch --model SmolLM2-135M-Instruct.Q4_1.gguf --input prompts.jsonl --output answers.jsonl
  rootlet batch --model M --input in.jsonl.gz --output out.jsonl --temperature 0 --max-new-tokens 256
  rootlet batch --model M --input in.jsonl --output out.jsonl --retry-errors
  rootlet batch --verify out.jsonl
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the ``batch`` command."""
    parser = commands.add_parser(
        "batch",
        usage="rootlet batch --model PATH --input FILE --output FILE [options]",
        help="answer every line of a JSONL file, resumably",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    job = parser.add_argument_group("job")
    job.add_argument("--input", required=True, metavar="FILE", help="JSONL file, plain or gzip")
    job.add_argument("--output", required=True, metavar="FILE", help="JSONL file, created or resumed")
    job.add_argument(
        "--order",
        choices=("prefix", "input"),
        default="prefix",
        help="submit lines that begin alike side by side, so that prefixes are computed once, or keep the "
        "order of the input (default: prefix)",
    )
    job.add_argument(
        "--window", type=int, metavar="INT", help="lines read ahead for --order prefix (default: 4096)"
    )
    job.add_argument(
        "--max-in-flight",
        type=int,
        metavar="INT",
        help="requests submitted and unfinished at a time (default: twice what runs at once)",
    )
    job.add_argument("--retry-errors", action="store_true", help="do lines again whose record is an error")
    job.add_argument(
        "--on-changed",
        choices=("error", "redo"),
        default="error",
        help="what to do about records whose line was changed or removed (default: error)",
    )
    job.add_argument(
        "--force", action="store_true", help="resume although the model, its options or the parameters differ"
    )
    job.add_argument("--overwrite", action="store_true", help="drop an existing output and start over")
    job.add_argument(
        "--verify",
        action=_Verify,
        metavar="FILE",
        help="check the records of an output and do nothing else; needs no model",
    )
    job.add_argument("--no-progress", action="store_true", help="show no progress")
    job.add_argument("--show", type=int, default=0, metavar="N", help="print the first N records at the end")
    add_engine_options(parser)
    add_sampling_options(parser, "Defaults for every line; a line's own values win.")
    add_log_level(parser, "info")
    parser.set_defaults(run=run)


class _Verify(argparse.Action):
    """Checks an output while the command line is read, like --help: nothing else of it is needed."""

    def __call__(
        self, parser: argparse.ArgumentParser, _namespace: object, value: object, _flag: str | None = None
    ) -> None:
        from ..engine.jobs import damaged_lines

        try:
            damaged = damaged_lines(str(value))
        except JobError as error:
            parser.error(str(error))
        if not damaged:
            print(f"{value}: all records are as they were written")
            parser.exit(0)
        named = ", ".join(map(str, damaged[:10])) + (", ..." if len(damaged) > 10 else "")
        print(f"{value}: {len(damaged)} damaged lines: {named}. The same job, run again, answers them anew.")
        parser.exit(1)


def run(args: argparse.Namespace) -> int:
    """Run the job and print its summary; returns the exit code."""
    from ..engine.jobs import run_jobs

    optional = {"window": args.window} if args.window is not None else {}
    summary = run_jobs(
        args.input,
        args.output,
        model=args.model,
        engine_options=engine_options(args),
        sampling_params=sampling_params(args),
        order=args.order,
        progress=not args.no_progress,
        max_in_flight=args.max_in_flight,
        retry_errors=args.retry_errors,
        on_changed=args.on_changed,
        force=args.force,
        overwrite=args.overwrite,
        **optional,
    )
    if args.show:
        _show(Path(summary.output), args.show)
    print(summary)
    if summary.errors:
        print(f"{summary.errors} records are errors; --retry-errors does those lines again.", file=sys.stderr)
    return 1 if summary.errors else 0


def _show(output: Path, count: int) -> None:
    """Print the answers of the first ``count`` records of an output."""
    with output.open(encoding="utf-8") as file:
        for line in itertools.islice(file, count):
            record = json.loads(line)
            name = record.get("custom_id") or record.get("id") or f"line {record['index'] + 1}"
            print(f"--- {name}\n{_answer(record)}")
    print("---")


def _answer(record: dict) -> str:
    if record.get("error"):
        return "error: " + record["error"]["message"]
    if "response" in record:
        choice = record["response"]["body"]["choices"][0]
        return (choice["message"]["content"] if "message" in choice else choice["text"]).strip()
    text = record.get("text", record.get("token_ids"))
    return (text[0] if isinstance(text, list) and isinstance(text[0], str) else str(text)).strip()
