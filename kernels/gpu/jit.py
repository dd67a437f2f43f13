"""Kernels that can be compiled before anything is launched, in all the variants that launches ask for.

Triton compiles a kernel at its first launch, once for every combination of constants, types, and of integers
that are 1 or multiples of 16. Where it is to be ready before a request comes, somebody has to know these
combinations. So the launchers of this folder run on tensors without memory too (device ``meta``): under
:func:`collecting` a launch is handed over instead of made, and :meth:`Launch.compile` makes it ready.

Threads may compile side by side, each another variant, but loading is for one thread of a process at a time.
Triton 3.6 launches a kernel by a Python extension made for its arguments, all of them under one name. When
Python imports such a file again, for another kernel with arguments of the same types, it takes *the module
that was last imported under that name*, and puts the function of the file into it. So a thread that has just
imported a file may find the function of another thread's file in its module: ``TypeError: function takes
exactly 45 arguments (53 given)``.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

LOADING = threading.RLock()
"""Held by who loads kernels, or may launch some for the first time: one thread of the process at a time."""


class Launch(NamedTuple):
    """A launch that was not made: what it would have launched, and with what."""

    kernel: Kernel
    args: tuple[Any, ...]
    options: Mapping[str, Any]

    @property
    def variant(self) -> Hashable:
        """Equal for launches that one compiled kernel serves."""
        return self.kernel, self.kernel.variant(self.args, self.options)

    def compile(self) -> Any:
        """Compile the kernel for the current device, or read it from Triton's cache; then comes :func:`load`.

        Threads may do so at once, each another variant, while somebody holds :data:`LOADING` for all.
        """
        compiled = self.kernel.compile(self.args, self.options)
        # Builds the extension, a third of a second of the C compiler, and imports it: perhaps with another's
        # function, which does not matter here. What is kept is imported once more, by `load`.
        triton.runtime.driver.active.launcher_cls(compiled.src, compiled.metadata)
        return compiled


Sink = Callable[[Launch], None]

_SINK: ContextVar[Sink | None] = ContextVar("sink", default=None)


@contextlib.contextmanager
def collecting(sink: Sink) -> Iterator[None]:
    """Hand over every launch of this thread to ``sink`` instead of making it."""
    token = _SINK.set(sink)
    try:
        yield
    finally:
        _SINK.reset(token)


class Kernel:
    """A function of Triton's language, launched by ``kernel[grid](...)``."""

    def __init__(
        self,
        function: Callable[..., None],
        do_not_specialize: Iterable[str],
        do_not_specialize_on_alignment: Iterable[str],
    ) -> None:
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self._any_value = frozenset(do_not_specialize)
        self._any_address = frozenset(do_not_specialize_on_alignment)
        self._parameters = tuple(inspect.signature(function).parameters)
        self._function = triton.jit(
            function,
            do_not_specialize=[*self._any_value],
            do_not_specialize_on_alignment=[*self._any_address],
        )
        constants = function.__annotations__.items()
        self._constants = frozenset(name for name, kind in constants if "constexpr" in str(kind))

    def __repr__(self) -> str:
        return f"Kernel({self.__name__})"

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        sink = _SINK.get()
        return self._function[grid] if sink is None else partial(self._hand_over, sink)

    def _hand_over(self, sink: Sink, *args: Any, **options: Any) -> None:
        sink(Launch(self, args, options))

    def variant(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> Hashable:
        """What Triton compiles the kernel for, given these arguments of a launch."""
        given = dict(zip(self._parameters, args))
        return tuple(self._kind(*item) for item in given.items()), tuple(sorted(options.items(), key=_name))

    def _kind(self, name: str, value: Any) -> Hashable:
        if name in self._constants or value is None:
            return value
        if isinstance(value, torch.Tensor):
            any_address = name in self._any_address or name in self._any_value
            return value.dtype, any_address or value.data_ptr() % 16 == 0
        if isinstance(value, TensorDescriptor):
            return value.base.dtype, tuple(value.block_shape)
        if isinstance(value, int) and not isinstance(value, bool):
            wide = not -(2**31) <= value < 2**31
            return wide if name in self._any_value else (wide, value == 1, value % 16 == 0)
        return type(value).__name__

    def compile(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
        """Compile the variant for these arguments, whose tensors need no memory."""
        return self._function.warmup(*args, grid=(1,), **options)


def load(compiled: Any) -> None:
    """Load what :meth:`Launch.compile` returned, to the current device: its first launch then just launches.

    Holding :data:`LOADING`, while no thread compiles.
    """
    compiled._init_handles()  # as Triton's own tutorials do


def jit(
    function: Callable[..., None] | None = None,
    *,
    do_not_specialize: Iterable[str] = (),
    do_not_specialize_on_alignment: Iterable[str] = (),
) -> Any:
    """``triton.jit`` for what is launched; what kernels call remains ``triton.jit``'s own.

    One compiled kernel serves every value of the arguments in ``do_not_specialize``, and pointers in
    ``do_not_specialize_on_alignment`` to any address: name there what changes from step to step.
    """
    if function is None:
        return partial(
            jit,
            do_not_specialize=do_not_specialize,
            do_not_specialize_on_alignment=do_not_specialize_on_alignment,
        )
    return Kernel(function, do_not_specialize, do_not_specialize_on_alignment)


def _name(item: tuple[str, Any]) -> str:
    return item[0]
