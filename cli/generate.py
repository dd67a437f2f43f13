"""``rootlet generate``: one prompt."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequestError
from .options import add_engine_options, add_log_level, add_sampling_options, engine_options, sampling_params

if TYPE_CHECKING:
    from ..engine.chat.render import ChatPrompt
    from ..engine.engine import Engine

EPILOG = """\
examples:
  rootlet generate --model M "The capital of France is" --temperature 0
  rootlet generate --model M --chat "Write a haiku about rain." --seed 7
  cat letter.txt | rootlet generate --model M --chat --system "Summarize the text." --json
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the ``generate`` command."""
    parser = commands.add_parser(
        "generate",
        usage="rootlet generate --model PATH [options] [prompt]",
        help="complete one prompt",
        description="Complete one prompt. On a terminal the text appears as it is generated.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", nargs="?", help="the prompt; without it, or as '-', standard input")
    parser.add_argument("--chat", action="store_true", help="wrap the prompt in the model's chat template")
    parser.add_argument("--system", metavar="TEXT", help="system message; implies --chat")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="print text as it comes (default: on a terminal)",
    )
    output.add_argument("--json", action="store_true", help="print the result with its counters as JSON")
    add_engine_options(parser)
    add_sampling_options(parser)
    add_log_level(parser, "warning")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate and print; returns the exit code."""
    prompt = _prompt(args.prompt)
    from ..engine.engine import Engine
    from ..sampling.params import SamplingParams

    params = SamplingParams.from_dict(sampling_params(args))  # refused before a model is loaded
    with Engine(args.model, **engine_options(args)) as engine:
        text: str | None = prompt
        ids: list[int] | None = None
        if args.chat or args.system is not None:
            chat = _render(engine, prompt, args.system)
            text, ids, params = None, chat.token_ids, chat.add_stop(params)
        stream = sys.stdout.isatty() if args.stream is None else args.stream
        if stream and params.n == 1 and not args.json:
            _print_stream(engine.generate(prompt=text, input_ids=ids, sampling_params=params, stream=True))
        else:
            result = engine.generate(prompt=text, input_ids=ids, sampling_params=params)
            _print_result(result, as_json=args.json)
    return 0


def _prompt(given: str | None) -> str:
    if given is not None and given != "-":
        return given
    if given is None and sys.stdin.isatty():
        raise InvalidRequestError("Give a prompt, or pipe one in.")
    return sys.stdin.read()


def _render(engine: Engine, prompt: str, system: str | None) -> ChatPrompt:
    from ..engine.chat.conversation import Conversation

    messages = () if system is None else (("system", system),)
    return engine.chat_renderer.encode(Conversation.from_pairs([*messages, ("user", prompt)]))


def _print_stream(chunks: Any) -> None:
    shown = 0
    for chunk in chunks:
        print(chunk.text[shown:], end="", flush=True)
        shown = len(chunk.text)
    print()


def _print_result(result: Any, *, as_json: bool) -> None:
    outputs = result if isinstance(result, list) else [result]
    if as_json:
        from ..engine.jobs.record_json import encode_record

        for output in outputs:
            print(encode_record(output.as_dict()).decode())
        return
    for number, output in enumerate(outputs):
        if len(outputs) > 1:
            print(f"--- sample {number + 1}")
        print(output.text)
