"""Where steps of padding run: a device, or nowhere, on tensors without memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from ....cache.kv_cache import KVCache
from ....cache.slot_pool import PADDING_SLOT
from ....cache.slot_tables import SlotTables
from ....kernels.device import STREAMS
from ....kernels.gpu.argmax import argmax
from ....kernels.gpu.slot_writes import write_runs
from ....kernels.gpu.step_inputs import store_tokens
from ....sampling.sampler import Sampler
from .draws import draw_in_all_ways
from .layouts import Extent

if TYPE_CHECKING:
    from ....cache.kv_spec import KVCacheSpec
    from ....models.interface import Model
    from ..layout import StepLayout
    from ..runner import Inputs


class Stage:
    """Runs the parts of a step, each by itself, on padding rows.

    ``device``: that of the model; ``meta`` for one whose weights have no memory.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        extent: Extent,
        make_inputs: Callable[[SlotTables, KVCacheSpec], Inputs],
        *,
        vocab_size: int,
        embeds: bool,
    ) -> None:
        self._model = model
        self._device = device
        self.extent = extent
        self._embeds = embeds
        self._kv = KVCache(model.kv_spec(extent.page_size), 2, device)
        self._tables = SlotTables(2, extent.context_length, extent.page_size, device, write_runs)
        self._inputs = make_inputs(self._tables, self._kv.spec)
        self._sampler = Sampler(vocab_size, device, fused=True)
        self._stream = STREAMS.borrow(device) if device.type == "cuda" else None

    def run_all(self) -> None:
        """Run steps of all kinds, so that every kernel is launched at least once."""
        extent = self.extent
        self.draw()
        for layout in extent.every():
            self.forward(layout)
            if not layout.all_sample:
                self.forward(layout, all_states=False)
        for count in extent.row_counts():
            self.finish(count)
        self.update()

    @torch.inference_mode()
    def update(self) -> None:
        """What stands before the layers: changes of the slot tables, copies of pages."""
        with self._placed():
            # a part of one token each, which is nobody's
            self._tables.write([(PADDING_SLOT, 0, [0])], [(PADDING_SLOT, 0, [0])])
            self._inputs.copy_pages(self._kv, [(PADDING_SLOT, PADDING_SLOT)])

    @torch.inference_mode()
    def forward(self, layout: StepLayout, *, all_states: bool = True) -> None:
        """The layers; with ``all_states`` of every token, as prompt scores ask for: the larger step."""
        with self._placed():
            self._model.forward(self._inputs.build(layout, all_states=all_states).forward, self._kv)

    @torch.inference_mode()
    def finish(self, num_rows: int) -> None:
        """What follows the last layer for rows that draw the most probable token, as recorded steps do."""
        with self._placed():
            hidden = self._hidden(num_rows)
            if self._embeds:
                self._model.compute_embeddings(hidden)
                return
            slots, lengths = self._zeros(num_rows, torch.int32), self._zeros(num_rows, torch.int32)
            token_ids = argmax(self._model.compute_logits(hidden))
            store_tokens(self._tables.tokens, slots, lengths, token_ids)

    @torch.inference_mode()
    def draw(self) -> None:
        """What follows the last layer, in every way that requests can ask for; of models that draw."""
        if self._embeds:
            return
        with self._placed():
            draw_in_all_ways(
                self._sampler, self._tables.tokens, lambda n: self._model.compute_logits(self._hidden(n))
            )

    def close(self) -> None:
        """Give the stream back; the memory goes with the object."""
        if self._stream is not None:
            STREAMS.give_back(self._stream, self._device)

    def _hidden(self, num_rows: int) -> torch.Tensor:
        return self._zeros((num_rows, self._model.hidden_size), self._model.dtype)

    def _zeros(self, shape: int | tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    @contextlib.contextmanager
    def _placed(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
            self._stream.synchronize()
