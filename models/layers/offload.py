"""Decoder layers whose weights are kept in host memory and pass through the device as they are needed.

    host      w0  w1  w2  w3            one piece of memory per offloaded layer
                \\   \\   \\   \\
    device      [ A ][ B ][ A ][ B ]    two buffers, in turn

While layer i computes from one buffer the weights of i + 1 arrive in the other; when i is done, those of
i + 2 may overwrite its own. Every forward pass begins with the first two copies and leaves none behind, so
passes know nothing of each other, and a recorded one repeats all of it. Passes of one model run one after
the other.

The offloaded layers stand apart from each other by as many resident ones as there are, which compute while
weights arrive.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from ...cache.kv_cache import LayerKV
from ...cache.memory import free_host_memory
from ...errors import ConfigError
from ...kernels.host_copies import HostCopies, host_copies
from ..forward import ForwardInput
from .part import Layer
from .residual import Residual
from .slots import NamedSlots, stores_of
from .storage import Room, Store, lay_out, total_bytes

_logger = logging.getLogger("rootlet.models")

GIB = 2**30

NUM_BUFFERS = 2
"""One to compute from and one to fill."""


class WeightStream:
    """The memory on both sides, and the copies of one pass in the order of the offloaded layers."""

    def __init__(self, sizes: Sequence[int], device: torch.device, copies: HostCopies) -> None:
        self._copies = copies
        num_buffers = min(NUM_BUFFERS, len(sizes))
        self._buffers = list(torch.empty((num_buffers, max(sizes)), dtype=torch.uint8, device=device))
        self._homes = [copies.host_memory(size) for size in sizes]

    def rooms(self, index: int, stores: Sequence[Store]) -> list[Room]:
        """Places for the tensors of offloaded layer ``index``, one after the other on both sides."""
        sides = (self._homes[index], self._buffers[self._slot(index)])
        return [Room(*both) for both in zip(*(lay_out(memory, stores) for memory in sides))]

    def begin(self) -> None:
        """Start the first copies of a pass, as soon as the work given so far is done."""
        for index in range(len(self._buffers)):
            self._fetch(index)

    def arrive(self, index: int) -> None:
        """What follows finds the weights of offloaded layer ``index`` in their place."""
        self._copies.wait(self._slot(index))

    def leave(self, index: int) -> None:
        """Layer ``index`` has been given all its work: the buffer is for the one after the next."""
        following = index + len(self._buffers)
        if following < len(self._homes):
            self._fetch(following)

    def _fetch(self, index: int) -> None:
        slot, home = self._slot(index), self._homes[index]
        self._copies.start(slot, self._buffers[slot][: home.numel()], home)

    def _slot(self, index: int) -> int:
        return index % len(self._buffers)


class OffloadedLayer:
    """A layer that computes from a buffer of ``weight_stream``; the ``index``-th of them."""

    __slots__ = ("_index", "_layer", "_weight_stream")

    def __init__(self, layer: Layer, weight_stream: WeightStream, index: int) -> None:
        self._layer = layer
        self._weight_stream = weight_stream
        self._index = index

    def weights(self) -> NamedSlots:
        """Those of the layer."""
        return self._layer.weights()

    def forward(self, stream: Residual, inp: ForwardInput, kv: LayerKV) -> None:
        """Wait for the weights, run the layer, let the next but one come."""
        self._weight_stream.arrive(self._index)
        self._layer.forward(stream, inp, kv)
        self._weight_stream.leave(self._index)


class FirstLayer:
    """The first layer of a model with offloaded ones: a pass begins here."""

    __slots__ = ("_layer", "_weight_stream")

    def __init__(self, layer: Layer, weight_stream: WeightStream) -> None:
        self._layer = layer
        self._weight_stream = weight_stream

    def weights(self) -> NamedSlots:
        """Those of the layer."""
        return self._layer.weights()

    def forward(self, stream: Residual, inp: ForwardInput, kv: LayerKV) -> None:
        """Start the copies, run the layer."""
        self._weight_stream.begin()
        self._layer.forward(stream, inp, kv)


def offload(
    layers: Sequence[Layer],
    num_bytes: int,
    device: torch.device,
    make_copies: Callable[[torch.device, int], HostCopies] = host_copies,
) -> list[Layer]:
    """The layers of a model without weights, so many of them offloaded that ``num_bytes`` leave the device.

    All of them if they have fewer. Raises ConfigError if the host has no room for them.
    """
    stores = [stores_of(layer.weights()) for layer in layers]
    chosen = choose([total_bytes(held) for held in stores], num_bytes)
    if not chosen:
        return list(layers)
    sizes = [total_bytes(stores[i]) for i in chosen]
    _check_host(sum(sizes))
    # memory must be ordinary whatever mode the caller is in, as in WeightTable.load
    with torch.inference_mode(False):
        stream = WeightStream(sizes, device, make_copies(device, NUM_BUFFERS))
        for index, i in enumerate(chosen):
            for store, room in zip(stores[i], stream.rooms(index, stores[i])):
                store.move(room)
    _report(sizes, len(layers), device)
    result = list(layers)
    for index, i in enumerate(chosen):
        result[i] = OffloadedLayer(layers[i], stream, index)
    result[0] = FirstLayer(result[0], stream)
    return result


def choose(sizes: Sequence[int], num_bytes: int) -> list[int]:
    """The fewest layers, evenly apart, whose ``sizes`` reach ``num_bytes``; else all.

    Each is the last of its stretch, so that the first copy too has layers to hide behind.
    """
    count = 0
    chosen: list[int] = []
    while count < len(sizes) and sum(sizes[i] for i in chosen) < num_bytes:
        count += 1
        chosen = [(i + 1) * len(sizes) // count - 1 for i in range(count)]
    return chosen


def _check_host(num_bytes: int) -> None:
    free = free_host_memory()
    if free is not None and num_bytes > free:
        raise ConfigError(
            f"cpu_offload_gb would move {num_bytes / GIB:.2f} GiB of weights to host memory, of which "
            f"{free / GIB:.2f} GiB are free. Lower it, or free some."
        )


def _report(sizes: Sequence[int], num_layers: int, device: torch.device) -> None:
    moved, buffers = sum(sizes), max(sizes) * min(len(sizes), NUM_BUFFERS)
    _logger.info(
        "cpu_offload_gb: %d of %d layers, %.2f GiB, are kept in host memory and pass through %.2f GiB on %s.",
        len(sizes),
        num_layers,
        moved / GIB,
        buffers / GIB,
        device,
    )
    if moved <= buffers:
        _logger.warning(
            "cpu_offload_gb frees no memory of %s: the %.2f GiB that are moved are no more than the buffers "
            "they pass through. Ask for more than that, or leave the option out.",
            device,
            moved / GIB,
        )
