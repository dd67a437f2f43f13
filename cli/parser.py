"""The argument parser of all commands: argparse's, whose errors suggest what may have been meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from ..errors import did_you_mean

_CHOICE = re.compile(r"invalid choice: '(?P<given>.*)' \(choose from (?P<known>.*)\)$", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """Names the nearest flag for an unknown one, and the nearest command or value for a wrong one.

    Commands are parsers of this class too, since they are added to one. Each reports its own unknown flags,
    with its own usage; argparse would leave that to the topmost parser.
    """

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """As argparse, except that unknown arguments are an error at once."""
        given = None if args is None else list(args)
        self._given = given or ()
        known, unknown = super().parse_known_args(given, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._hints(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with 2."""
        if wrong := _CHOICE.search(message):
            known = [choice.strip("'") for choice in wrong["known"].split(", ")]
            message += did_you_mean(wrong["given"], known)
        elif "required" in message:  # perhaps it was given, misspelt
            message += self._hints(self._given)
        super().error(message)

    def _hints(self, arguments: Iterable[str]) -> str:
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        flags = [one.partition("=")[0] for one in arguments if one.startswith("--")]
        hints = [did_you_mean(flag, known) for flag in flags if not any(k.startswith(flag) for k in known)]
        return "".join(dict.fromkeys(hints))
