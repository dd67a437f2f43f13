"""Every error Rootlet raises on purpose.

    RootletError
    ├── InvalidRequestError (ValueError)     a request is wrong: prompt, lengths, combination of fields
    │   └── RequestTooLongError              it cannot fit the context or the KV pool, even alone
    ├── InvalidParameterError (ValueError)   a sampling parameter has an impossible value
    ├── UnknownOptionError (TypeError)       an option or parameter name nobody knows (carries a suggestion)
    ├── GrammarError (ValueError)            a constraint is invalid, or asks for what cannot be enforced
    ├── ConfigError (ValueError)             an engine option has an impossible value
    ├── ModelError (ValueError)              config.json or architecture is not supported
    │   └── WeightsError                     missing, leftover, truncated or misshapen weights
    ├── MissingDependencyError (ImportError) a package is needed; says how to install it
    ├── JobError (ValueError)                a JSONL job cannot start or resume
    ├── LogitProcessorError (RuntimeError)   a caller's logit processor raised or returned no logits
    ├── NumericalError (ArithmeticError)     a request's logits leave no token to choose: NaN, or all -inf
    ├── TokenizerError (RuntimeError)        the model's tokenizer raised; ``__cause__`` is what it raised
    ├── TransferError (RuntimeError)         weights do not arrive from another process: it is gone, or late
    ├── ProfileError (RuntimeError)           a profile is started twice, or stopped before it was started
    ├── OutOfPagesError (MemoryError)        internal: the page pool cannot serve an allocation
    ├── DeviceMemoryError (MemoryError)      memory cannot be taken, or taken back: too little of it is free
    ├── AlignmentError (RuntimeError)        a module is not aligned, or what is around it computes otherwise
    ├── EngineThreadError (RuntimeError)     a call would wait for the thread it runs on
    ├── EngineClosedError (RuntimeError)     the engine was closed
    │   └── EngineForkedError                it was built before this process was forked off
    └── EngineFailedError (RuntimeError)     a step raised; ``__cause__`` is the original error

Each class also derives from the builtin a caller would naturally catch. Messages say what was
wrong, what was got, what is allowed and how to fix it.
"""

from __future__ import annotations

import difflib
import reprlib
import threading
from collections.abc import Iterable

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = _REPR.maxfrozenset = 8


class RootletError(Exception):
    """Base of all errors raised by Rootlet on purpose."""


class InvalidRequestError(RootletError, ValueError):
    """A request is malformed or contradicts itself."""


class RequestTooLongError(InvalidRequestError):
    """The request can never fit: longer than the context length or than the whole KV pool."""


class InvalidParameterError(RootletError, ValueError):
    """A sampling parameter has a value outside its range."""


class UnknownOptionError(RootletError, TypeError):
    """An option name that does not exist; the message suggests the nearest one that does."""


class GrammarError(RootletError, ValueError):
    """A constraint (JSON schema, regex, grammar) is invalid, or asks for what cannot be enforced."""


class ConfigError(RootletError, ValueError):
    """An engine option has an impossible value, or two options contradict each other."""


class ModelError(RootletError, ValueError):
    """The model's configuration or architecture is not supported."""


class WeightsError(ModelError):
    """Weights are missing, left over, truncated or of the wrong shape."""


class MissingDependencyError(RootletError, ImportError):
    """A package that this needs is not installed; the message has the command that installs it."""


class JobError(RootletError, ValueError):
    """A JSONL job cannot be started or resumed."""


class LogitProcessorError(RootletError, RuntimeError):
    """A caller's logit processor raised (``__cause__``) or returned no logits; only its requests end."""


class NumericalError(RootletError, ArithmeticError):
    """A request's logits leave no token to choose: they are NaN, or all of them -inf."""


class TokenizerError(RootletError, RuntimeError):
    """The model's tokenizer raised (``__cause__``) over a request's text or tokens; only that one ends."""


class TransferError(RootletError, RuntimeError):
    """Weights do not arrive from another process: it is gone, or late, or sends something else."""


class ProfileError(RootletError, RuntimeError):
    """A profile is started twice, or stopped before it was started."""


class OutOfPagesError(RootletError, MemoryError):
    """The page pool has fewer free pages than asked for."""


class DeviceMemoryError(RootletError, MemoryError):
    """A device refuses memory, at construction or when an engine wants back what it had released."""


class AlignmentError(RootletError, RuntimeError):
    """A module is not aligned with the engine, is so already, or autocast, a compiler or dropout is on."""


class EngineClosedError(RootletError, RuntimeError):
    """The engine was closed before or while the call was running."""


class EngineForkedError(EngineClosedError):
    """The engine, or a handle of it, is used in a process that was forked off after it was built."""


class EngineThreadError(RootletError, RuntimeError):
    """A call from a callback or a logit processor would wait for the very thread that it runs on."""


class EngineFailedError(RootletError, RuntimeError):
    """A step of the engine raised; the original exception is ``__cause__``."""


def short(value: object) -> str:
    """``repr(value)`` for a message: shortened, and safe for values whose own repr is endless or raises."""
    try:
        return _REPR.repr(value)
    except Exception:  # a caller's class may do anything; Python refuses to write out huge integers
        return f"<{type(value).__name__}>"


def is_interrupt(error: BaseException) -> bool:
    """Whether ``error`` is a Ctrl-C: Python delivers it to the main thread, whatever runs there.

    In any other thread a KeyboardInterrupt is raised by somebody's code, like every other error.
    """
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def unknown_option(kind: str, name: str, known: Iterable[str], hint: str | None = None) -> UnknownOptionError:
    """Build the error for an unknown name, with the nearest known names as a suggestion.

    ``kind`` names what it is, e.g. ``"engine option"`` or ``"sampling parameter"``; ``hint`` is a better
    suggestion than that, a sentence.
    """
    known = sorted(known)
    if hint is None:
        hint = f"{did_you_mean(name, known)} Known names: {', '.join(known)}.".strip()
    return UnknownOptionError(f"Unknown {kind} {short(name)}. {hint}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest known names as a question behind a message, empty if none is near."""
    close = difflib.get_close_matches(name[:100], list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
