"""Calling code of the host on the engine's thread: what it raises is logged, and harms nobody else.

Callbacks are such code, and so are the handlers and filters of the host's own logging.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from ...errors import is_interrupt

logger = logging.getLogger("rootlet.engine")


def call_host(what: str, function: Callable[..., object], *args: Any) -> None:
    """Call ``function(*args)``; log whatever it raises, SystemExit included, naming it ``what``.

    Only Ctrl-C goes through: it means who drives an engine by hand, not the code that it happens to strike.
    """
    try:
        function(*args)
    except BaseException as error:
        if is_interrupt(error):
            raise
        log_exception("%s raised; the engine goes on", what)


def log_exception(message: str, *args: object) -> None:
    """Log the exception being handled; a logging handler of the host that raises is left to itself."""
    with contextlib.suppress(BaseException):
        logger.exception(message, *args)
