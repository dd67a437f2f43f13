"""Attention by the flashinfer library (arXiv:2501.01005) behind the interface of our own plans.

flashinfer plans on the host, from lengths, and then runs layer by layer. Its plan also holds what our layers
say only when they attend (scale, window, soft cap), so each distinct :class:`Scoring` of a model is planned
at its first layer of a step. Its kernels are compiled at their first use and kept in its cache on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final, Protocol

import numpy as np
import torch

from ...errors import ConfigError, ModelError
from ..scoring import Scoring

CAN: Final = frozenset({"window", "soft_cap"})
"""Fields of a :class:`Scoring` that its wrappers are told of."""

HEAD_DIMS = (64, 128, 256)
DTYPES = (torch.bfloat16, torch.float16)

_TILE_ROWS = 128  # largest tile of query rows of its kernels
_BLOCKS_PER_SM = 2  # and the blocks per multiprocessor that it divides long contexts for


@dataclass(frozen=True)
class PagedRows:
    """Rows of one kind in flashinfer's terms: R rows with N pages in all, everything int32.

    What it plans from is on the host, pinned beside a GPU; page ids, which only its kernels read, are not.
    """

    page_starts: torch.Tensor  # [R + 1], row r has the pages page_starts[r] : page_starts[r + 1]
    last_page_lens: torch.Tensor  # [R], tokens in each row's last page, at least 1
    pages: torch.Tensor  # [N] on the device
    page_size: int
    q_starts: torch.Tensor | None  # [R + 1], counted from the first of these rows; None: a token per row

    @classmethod
    def of(
        cls,
        table: torch.Tensor,
        slots: np.ndarray,
        kv_lens: np.ndarray,
        page_size: int,
        q_starts: np.ndarray | None = None,
    ) -> PagedRows:
        """Rows with contexts of ``kv_lens`` [R], whose pages stand in ``table`` [num_slots, max_pages].

        Row r's are in row ``slots[r]`` of the table. They are gathered on the table's device, after whatever
        the current stream has yet to write there.
        """
        device = table.device
        starts, last_lens, columns = page_runs(kv_lens, page_size)
        places = np.stack((np.repeat(slots, np.diff(starts)), columns)).astype(np.int64)
        rows, columns = _on_host(places, device).to(device, non_blocking=True)
        return cls(
            _on_host(starts, device),
            _on_host(last_lens, device),
            table[rows, columns],
            page_size,
            None if q_starts is None else _on_host(q_starts, device),
        )

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.last_page_lens)


def page_runs(kv_lens: np.ndarray, page_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(starts [R + 1], tokens in the last page [R], column in the page table [N]), int32, of contexts [R].

    A context has at least one token.
    """
    counts = -(-kv_lens // page_size)
    starts = np.zeros(len(kv_lens) + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    columns = np.arange(starts[-1], dtype=np.int32) - np.repeat(starts[:-1], counts)
    return starts, (kv_lens - (counts - 1) * page_size).astype(np.int32), columns


class Run(Protocol):
    """A planned wrapper."""

    def run(
        self,
        q: torch.Tensor,
        paged_kv_cache: tuple[torch.Tensor, torch.Tensor],
        *,
        out: torch.Tensor,
        enable_pdl: bool,
    ) -> torch.Tensor:
        """Write the attention ``[T, Hq, D]`` of one layer's q ``[T, Hq, D]`` to ``out``."""


class Planner(Protocol):
    """Plans rows for a scoring; what it returns holds until it plans rows of that kind and scoring again."""

    def plan(self, rows: PagedRows, scoring: Scoring) -> Run:
        """The wrapper, ready to run for these rows."""


@dataclass(frozen=True)
class FlashInferPlan:
    """Which q tokens of one step attend to what: rows of one token first, then rows of several."""

    planner: Planner
    decodes: PagedRows | None
    prefills: PagedRows | None
    _planned: dict[Scoring, list[tuple[slice, Run]]] = field(default_factory=dict)

    def attend(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Attention ``[T, Hq, D]`` of q ``[T, Hq, D]``, as ``paged_attention`` defines it."""
        parts = self._planned.get(scoring)
        if parts is None:
            parts = self._planned[scoring] = self._plan(scoring)
        out = q.new_empty(q.shape)
        for part, wrapper in parts:
            # no programmatic launch: without recorded graphs the host is slower than what that would overlap
            wrapper.run(q[part], (k_cache, v_cache), out=out[part], enable_pdl=False)
        return out

    def _plan(self, scoring: Scoring) -> list[tuple[slice, Run]]:
        if not scoring.asks <= CAN:
            raise ModelError(
                f"attention_backend='flashinfer' does not know {', '.join(sorted(scoring.asks - CAN))}, which"
                f" this model's attention has. Known: {', '.join(sorted(CAN))}. Use attention_backend='auto'."
            )
        count = 0 if self.decodes is None else self.decodes.num_rows
        kinds = ((slice(0, count), self.decodes), (slice(count, None), self.prefills))
        return [(part, self.planner.plan(rows, scoring)) for part, rows in kinds if rows is not None]


class Wrappers:
    """An engine's flashinfer wrappers, one per kind of rows and scoring, and the memory that they share.

    One step of each kind at a time, all on one stream. ``device`` is a CUDA GPU. Raises ConfigError for heads
    or data types that flashinfer does not take, and where its kernels cannot be compiled.
    """

    def __init__(
        self, num_q_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        check_supported(head_dim, dtype)
        self._library = import_library()
        self._heads = (num_q_heads, num_kv_heads, head_dim)
        self._dtype = dtype
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        size = workspace_bytes(num_q_heads // num_kv_heads, head_dim, multiprocessors)
        self._workspace = torch.zeros(size, dtype=torch.uint8, device=device)
        self._wrappers: dict[tuple[bool, Scoring], tuple[Any, torch.cuda.Event]] = {}

    def plan(self, rows: PagedRows, scoring: Scoring) -> Run:
        """The wrapper for this kind of rows and scoring, planned for these rows on the current stream."""
        key = (rows.q_starts is None, scoring)
        if key in self._wrappers:
            wrapper, sent = self._wrappers[key]
            # A plan is laid out in pinned memory of the wrapper's and copied from there: the last step's copy
            # must be over. With overlap that is the step running now, and its copy stands at the beginning.
            sent.synchronize()
            self._plan(wrapper, rows, scoring)
        else:
            wrapper, sent = self._first_plan(rows, scoring), torch.cuda.Event()
            self._wrappers[key] = wrapper, sent
        sent.record()
        return wrapper

    def _first_plan(self, rows: PagedRows, scoring: Scoring) -> Any:
        try:
            if rows.q_starts is None:
                # on tensor cores: faster than its other kernel, and for any number of q heads per kv head
                wrapper = self._library.BatchDecodeWithPagedKVCacheWrapper(
                    self._workspace, "NHD", use_tensor_cores=True
                )
            else:
                wrapper = self._library.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD")
            self._plan(wrapper, rows, scoring)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
            raise ConfigError(
                f"attention_backend='flashinfer': flashinfer {self._library.__version__} cannot prepare its"
                f" kernels for {scoring} and {self._heads} (q heads, kv heads, head_dim): {reason}. They are"
                " compiled at first use, which takes nvcc and ninja. Or use attention_backend='auto'."
            ) from error
        return wrapper

    def _plan(self, wrapper: Any, rows: PagedRows, scoring: Scoring) -> None:
        pages = (rows.page_starts, rows.pages, rows.last_page_lens, *self._heads, rows.page_size)
        settings = {
            # theirs counts the positions before a token's own
            "window_left": -1 if scoring.window is None else scoring.window - 1,
            "logits_soft_cap": scoring.soft_cap,
            "sm_scale": scoring.scale,
            "q_data_type": self._dtype,
            "kv_data_type": self._dtype,
        }
        if rows.q_starts is None:
            wrapper.plan(*pages, **settings)
        else:
            wrapper.plan(rows.q_starts, *pages, causal=True, **settings)


def workspace_bytes(group: int, head_dim: int, multiprocessors: int) -> int:
    """Bytes for what parts of a divided context leave behind: the most that flashinfer divides into, in fp32.

    It divides contexts only as long as all (tile, part) pairs fit on the GPU at once; each leaves a tile of
    outputs and a sum per row, for every one of the ``group`` q heads per kv head.
    """
    return group * _BLOCKS_PER_SM * multiprocessors * _TILE_ROWS * (head_dim + 1) * 4 + 1024


def import_library() -> ModuleType:
    """The module flashinfer. Raises ConfigError when it is not installed."""
    try:
        import flashinfer
    except ImportError as error:
        raise ConfigError(
            f"attention_backend='flashinfer' needs the package flashinfer, which cannot be imported: {error}."
            " Run `pip install 'flashinfer-python>=0.6.12'`, or use the faster attention_backend='auto'."
        ) from error
    return flashinfer


def check_supported(head_dim: int, dtype: torch.dtype) -> None:
    """Raise ConfigError unless flashinfer has kernels for this head size and data type."""
    if head_dim not in HEAD_DIMS:
        raise ConfigError(
            f"attention_backend='flashinfer' takes heads of {', '.join(map(str, HEAD_DIMS))}; this model's"
            f" head_dim is {head_dim}. Use attention_backend='auto'."
        )
    if dtype not in DTYPES:
        raise ConfigError(
            f"attention_backend='flashinfer' computes in bfloat16 or float16; this model is"
            f" {str(dtype).removeprefix('torch.')}. Set dtype='bfloat16', or use attention_backend='auto'."
        )


def _on_host(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array as a tensor that a GPU can copy while the host goes on."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory() if device.type == "cuda" else tensor
