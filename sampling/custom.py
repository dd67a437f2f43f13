"""Logit processors of the caller's own: objects or plain callables that edit the logits of their requests."""

from __future__ import annotations

import abc
import functools
import json
from collections.abc import Callable
from typing import Any

import torch

from ..errors import InvalidRequestError, short

LogitProcessor = Callable[[torch.Tensor, "list[dict[str, Any]]"], torch.Tensor]
"""Takes the logits [n, V] fp32 of its n rows and their ``custom_params``; returns logits of that shape."""

_MAX_LOADED = 64  # strings remembered with the processors they hold


class CustomLogitProcessor(abc.ABC):
    """Base of logit processors that can be written to a string; a plain callable serves as well.

    Example::

        class Only(rootlet.CustomLogitProcessor):
            def __call__(self, logits, custom_param_list):
                for row, params in zip(logits, custom_param_list):
                    row[:] = -float("inf")
                    row[params["token_id"]] = 0.0
                return logits

        params = {"custom_params": {"token_id": 5}}
        engine.generate("Hello", params, custom_logit_processor=Only())
    """

    @abc.abstractmethod
    def __call__(self, logits: torch.Tensor, custom_param_list: list[dict[str, Any]]) -> torch.Tensor:
        """Return the logits to choose from.

        Called once per step, on the engine's thread, with the rows of all requests that use this same object
        (or equal strings). Calls of the engine that would wait raise EngineThreadError there.

        Args:
            logits: [n, V] fp32 on the engine's device, a copy of its own: after penalties and biases, before
                the temperature. May be edited in place and returned.
            custom_param_list: ``custom_params`` of the n requests, ``{}`` for those without. Each is a
                request's own shallow copy and the same dict at every step, so it may also hold notes.

        Returns: logits [n, V] fp32 on that device. -inf bans a token, +inf forces one. An exception, NaN or
        anything else ends the n requests (with NaN: those of its rows) with LogitProcessorError; so does
        SystemExit, which ends nothing else.
        """

    def to_str(self) -> str:
        """This object, its class included, as JSON: ``{"callable": hex of a dill dump}``.

        Raises InvalidRequestError if it holds what dill cannot write.
        """
        import dill  # takes a while to load, and few programs need it

        try:
            return json.dumps({"callable": dill.dumps(self).hex()})
        except Exception as error:  # pickling runs code of the objects, which may raise anything
            raise InvalidRequestError(
                f"{processor_name(self)} cannot be written to a string: {error!r}. Pass the object itself,"
                " or keep out of it what belongs to this process (locks, files, engines)."
            ) from error

    @staticmethod
    def from_str(text: str) -> LogitProcessor:
        """The processor that ``to_str`` wrote; equal strings give one object while it is remembered.

        Loading runs code in the string: take strings only from people you would run code of.
        Raises InvalidRequestError if there is no processor in it.
        """
        return _load(text)


def processor_name(processor: LogitProcessor) -> str:
    """What to call it in messages: the name of a function, or of an object's class."""
    return getattr(processor, "__qualname__", None) or type(processor).__qualname__


def resolve_processor(given: Any, custom_params: Any) -> LogitProcessor | None:
    """What a request passed as a processor, ready to be called; None if nothing.

    Raises InvalidRequestError if it is no callable, a string without one or a class, or if there are
    ``custom_params`` that nobody would read.
    """
    if given is None:
        if custom_params is not None:
            raise InvalidRequestError(
                "custom_params are read by a custom_logit_processor, and there is none: pass one, or leave"
                " custom_params out."
            )
        return None
    return _checked(_load(given) if isinstance(given, str) else given)


@functools.lru_cache(_MAX_LOADED)
def _load(text: str) -> LogitProcessor:
    import dill

    try:
        loaded = dill.loads(bytes.fromhex(json.loads(text)["callable"]))
        # later versions of the documented interface write the class
        return _checked(loaded() if isinstance(loaded, type) else loaded)
    except InvalidRequestError:
        raise
    except Exception as error:  # loading runs code of whoever wrote the string
        raise InvalidRequestError(
            'custom_logit_processor as a string must be what to_str() returned, {"callable": hex of a dill'
            f" dump}}; got {text[:40]!r}…, which cannot be loaded: {error!r}."
        ) from error


def _checked(processor: Any) -> LogitProcessor:
    if isinstance(processor, type):
        raise InvalidRequestError(
            f"custom_logit_processor must be an instance, got the class: pass {processor.__name__}()."
        )
    if not callable(processor):
        raise InvalidRequestError(
            "custom_logit_processor must be a CustomLogitProcessor, its to_str() or a callable"
            f" f(logits, custom_param_list), got {type(processor).__name__}: {short(processor)}."
        )
    return processor
