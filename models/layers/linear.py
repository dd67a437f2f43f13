"""Linear layers, whose rows may come from several checkpoint tensors and be held in several formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ...kernels.linear import linear, linear_add
from ...kernels.norm import NormWeight
from ...kernels.products import Product, around
from ..forward import ForwardInput
from .matrices import MatrixStorage, Split
from .residual import Promise, Residual
from .slots import NamedSlots, Rows, Shard, Slot
from .storage import TensorStore


class Linear:
    """``y = x W^T + b``, where W and b have so many ``rows`` of each name, one after the other.

    A plain projection has one name, ``{"o_proj": H}``; merged ones several, ``{"gate_proj": I,
    "up_proj": I}``, so that one multiplication does the work of all. W is the rows of ``segments``, one
    under another, each of a format of its own; mostly there is one. With a ``split``, rows and columns are
    this rank's.
    """

    __slots__ = ("_rows", "_single", "_split", "bias", "segments")

    def __init__(
        self,
        rows: Mapping[str, int],
        segments: Sequence[MatrixStorage],
        bias: TensorStore | None = None,
        split: Split | None = None,
    ) -> None:
        self._rows = dict(rows)
        self.segments = tuple(segments)
        self._single = self.segments[0] if len(self.segments) == 1 else None
        self.bias = bias
        self._split = split

    def weights(self) -> NamedSlots:
        """Checkpoint names: ``<name>.weight``, or what else the format has, and ``<name>.bias`` if any."""
        split = self._split
        start = 0
        for (name, size), (segment, first) in zip(self._rows.items(), self._places(), strict=True):
            for part, slot in segment.slots(first, first + size, split):
                yield f"{name}.{part}", slot
            if self.bias is not None:
                bias: Slot = Rows(self.bias, start, start + size)
                if split is not None and split.along == "out":
                    bias = Shard(bias, 0, split.ranks)
                yield f"{name}.bias", bias
            start += size

    def forward(
        self,
        x: Tensor | Promise,
        inp: ForwardInput | None,  # noqa: ARG002
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Multiply x ``[T, K]`` -> ``[T, N]`` in ``out_dtype`` (default: that of x).

        ``inp`` is the step that x belongs to; None behind the last layer, where a row is a state of any step.
        """
        return self._multiply(x, out_dtype, None)

    def forward_gated(self, x: Tensor | Promise, inp: ForwardInput, activation: str) -> Tensor:  # noqa: ARG002
        """``act(gate) * up`` ``[T, N / 2]`` for rows gate | up; activations as in ``kernels.activation``."""
        return self._multiply(x, None, activation)

    def forward_into(self, x: Tensor, inp: ForwardInput, stream: Residual) -> None:  # noqa: ARG002
        """Add the product ``[T, N]`` of x ``[T, K]`` to ``stream``: while writing it, where that is free."""
        if self._single is not None and self._single.matrix.adds_in_product(x):
            linear_add(x, self._single.matrix, self._bias, stream.in_place())
        else:
            stream.add(self._multiply(x, None, None))

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ids ``[T]`` int64 of W as ``[T, K]``, a new tensor; W is all in one format."""
        (segment,) = self.segments
        return segment.matrix.rows(ids)

    def _multiply(self, x: Tensor | Promise, out_dtype: torch.dtype | None, activation: str | None) -> Tensor:
        norm: NormWeight | None = None
        if isinstance(x, Promise):
            x, norm = x.take()
        if self._single is not None:
            return linear(x, self._single.matrix, self._bias, out_dtype, norm=norm, activation=activation)
        return around(Product(x, self._bias, norm, activation, None, out_dtype), self._side_by_side)

    def _side_by_side(self, x: Tensor, bias: Tensor | None, out_dtype: torch.dtype | None) -> Tensor:
        """The products with all segments, ``[T, N]``."""
        results, start = [], 0
        for segment in self.segments:
            stop = start + segment.shape[0]
            part = None if bias is None else bias[start:stop]
            results.append(linear(x, segment.matrix, part, out_dtype))
            start = stop
        return torch.cat(results, dim=1)

    def _places(self) -> Iterator[tuple[MatrixStorage, int]]:
        """For each name the segment that its rows are in, and the first of them there.

        AssertionError if a name's rows are not all in one segment.
        """
        segments = iter(self.segments)
        segment, start = next(segments), 0
        for name, size in self._rows.items():
            if start == segment.shape[0]:
                segment, start = next(segments), 0
            if start + size > segment.shape[0]:
                raise AssertionError(f"The rows of {name} are not in one matrix.")
            yield segment, start
            start += size

    @property
    def _bias(self) -> Tensor | None:
        """What this rank adds: of a sum that ranks share, the first does."""
        if self.bias is None or (
            self._split is not None and self._split.along == "in" and self._split.ranks.rank
        ):
            return None
        return self.bias.data
