"""``rootlet chat``: a conversation in the terminal, or with a pipe."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import EngineClosedError, EngineFailedError, RootletError
from .options import add_engine_options, add_log_level, add_sampling_options, engine_options, sampling_params

if TYPE_CHECKING:
    from ..engine.engine import Engine

HELP = """\
/system TEXT   set the system message and start over (without TEXT: remove it)
/reset         start over
/exit          leave (so does Ctrl-D)
Ctrl-C stops the current answer; what was said of it stays in the conversation."""

EPILOG = f"""\
in the conversation:
  {HELP.replace(chr(10), chr(10) + "  ")}

examples:
  rootlet chat --model SmolLM2-135M-Instruct.Q4_1.gguf
  printf 'Hi, I am Ada.\\nWhat is my name?\\n' | rootlet chat --model M --temperature 0
"""

_MAX_ANSWER = 1024  # tokens, unless the caller says otherwise or less is left of the context
_TEMPERATURE = 0.7


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the ``chat`` command."""
    parser = commands.add_parser(
        "chat",
        usage="rootlet chat --model PATH [options]",
        help="talk to a model",
        description="Talk to a model. With piped input every line is a message and every answer a paragraph.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--system", metavar="TEXT", help="system message")
    add_engine_options(parser)
    add_sampling_options(
        parser,
        f"Unless given, temperature is {_TEMPERATURE}, and max_new_tokens {_MAX_ANSWER} (or what is left of "
        "the context).",
    )
    add_log_level(parser, "warning")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends; returns the exit code."""
    from ..engine.engine import Engine
    from ..sampling.params import SamplingParams

    sampling = {"temperature": _TEMPERATURE} | sampling_params(args)
    SamplingParams.from_dict(sampling)  # refused before a model is loaded
    with Engine(args.model, **engine_options(args)) as engine:
        return Repl(ChatSession(engine, sampling, args.system)).run()


class ChatSession:
    """The messages so far, and how to get the next one. Knows nothing of terminals.

    ``sampling``: values for SamplingParams. Only a finished or interrupted answer becomes part of the
    conversation; a message that the engine refuses does not.
    """

    def __init__(self, engine: Engine, sampling: dict[str, Any], system: str | None = None) -> None:
        self._engine = engine
        self._sampling = sampling
        longest = engine.get_server_info()["max_req_input_len"]
        assert isinstance(longest, int)
        self._room = longest + 1
        self.messages: list[tuple[str, str]] = []
        self.reset(system)

    def reset(self, system: str | None) -> None:
        """Forget everything said; ``system`` is the system message from now on."""
        self.system = system
        self.messages = [] if system is None else [("system", system)]

    def ask(self, text: str, write: Callable[[str], object]) -> None:
        """Send a message and ``write`` the answer piece by piece.

        KeyboardInterrupt ends the answer: the engine stops computing it, and what there is of it stays.
        Raises a RootletError when the request is refused or the engine fails.
        """
        from ..engine.chat.conversation import Conversation
        from ..sampling.params import SamplingParams

        messages = [*self.messages, ("user", text)]
        prompt = self._engine.chat_renderer.encode(Conversation.from_pairs(messages))
        limit = {"max_new_tokens": max(1, min(_MAX_ANSWER, self._room - len(prompt.token_ids)))}
        params = prompt.add_stop(SamplingParams.from_dict(limit | self._sampling))
        handle = self._engine.submit(input_ids=prompt.token_ids, sampling_params=params)
        answer = ""
        try:
            for output in handle:
                assert output.text is not None  # who renders conversations has a tokenizer
                write(output.text[len(answer) :])
                answer = output.text
        except KeyboardInterrupt:
            handle.abort()
            self.messages = [*messages, ("assistant", answer)]
            raise
        self.messages = [*messages, ("assistant", answer)]


class Repl:
    """Reads lines, runs commands, prints answers.

    Prompts and editing only on a terminal. Refused messages are reported and do not end the conversation;
    with piped input they make the exit code 1.
    """

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self._interactive = sys.stdin.isatty()
        self._failed = False

    def run(self) -> int:
        """Talk until the input ends; returns the exit code."""
        if self._interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - gives input() line editing and history
            print("Type a message; /help lists the commands.")
        while (line := self._read()) is not None:
            text = line.strip()
            if text == "/exit":
                break
            if text.startswith("/"):
                self._command(text)
            elif text:
                self._answer(text)
        return 1 if self._failed else 0

    def _read(self) -> str | None:
        """The next line, or None at the end of the input."""
        if not self._interactive:
            return sys.stdin.readline() or None
        while True:
            try:
                return input("> ")
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print("\nCtrl-D or /exit leaves.")

    def _command(self, text: str) -> None:
        name, _, argument = text.partition(" ")
        if name == "/reset":
            self._session.reset(self._session.system)
        elif name == "/system":
            self._session.reset(argument.strip() or None)
        elif name == "/help":
            print(HELP)
        else:
            self._complain(f"There is no command {name}.\n{HELP}")

    def _answer(self, text: str) -> None:
        try:
            self._session.ask(text, lambda piece: print(piece, end="", flush=True))
            print("\n" if not self._interactive else "")
        except KeyboardInterrupt:
            print(" [stopped]")
            if not self._interactive:
                raise
        except (EngineFailedError, EngineClosedError):
            raise
        except RootletError as error:
            self._complain(f"{error}\n(/reset starts over)")

    def _complain(self, message: str) -> None:
        print(message, file=sys.stderr)
        self._failed = not self._interactive
