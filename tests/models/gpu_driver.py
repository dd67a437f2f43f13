"""Drives a model through the GPU's kernels, which Triton interprets where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from rootlet.kernels import activation, norm, rotary
from rootlet.kernels.attention import PagedAttentionPlan
from rootlet.kernels.matrices import dense

pytest.importorskip("supported_triton")

from rootlet.kernels.gpu.attention import DecodeRows, PrefillRows, TritonAttentionPlan
from rootlet.kernels.gpu.prefill_attention import prefill_config, prefill_tiles, tile_tokens

from .driver import Driver


@pytest.fixture
def gpu_kernels(monkeypatch):
    """Operations on any tensor are the GPU's."""
    for module in (activation, dense, norm, rotary):
        monkeypatch.setattr(module, "on_gpu", lambda tensor: True)


class GpuDriver(Driver):
    """Rows of one token go to the decode kernel if all are such; else all go to the prefill kernel."""

    def planned(self, plan: PagedAttentionPlan) -> TritonAttentionPlan:
        """The plan for Triton's kernels."""
        counts = plan.q_starts.diff()
        slots = torch.arange(len(counts), dtype=torch.int32)
        if (counts == 1).all():
            return TritonAttentionPlan(plan.page_table, DecodeRows(slots, plan.kv_lens, 2), None)
        [group] = self.kv.spec.groups
        _, (num_kv_heads, head_dim), dtype = group.plane("k")
        config = prefill_config(head_dim, self.page_size, dtype)
        tokens = tile_tokens(config.block_m, group.num_q_heads, num_kv_heads)
        tiles = torch.from_numpy(prefill_tiles(counts.numpy(), tokens, plan.kv_lens.numpy()))
        rows = PrefillRows(slots, plan.kv_lens, plan.q_starts, tiles)
        return TritonAttentionPlan(plan.page_table, None, rows)
