"""What flashinfer promises, in torch: it reads the same rows and runs our reference."""

from __future__ import annotations

from collections import Counter

import torch

from rootlet.kernels.attention import PagedAttentionPlan, paged_attention_reference


class TorchPlanner:
    """Plans like flashinfer from what it is given, and runs our reference."""

    def __init__(self):
        self.planned = Counter()

    def plan(self, rows, scoring):
        self.planned[rows.q_starts is None, scoring] += 1
        return TorchRun(rows, scoring)


class TorchRun:
    def __init__(self, rows, scoring):
        starts = rows.page_starts
        counts = starts.diff()
        assert rows.last_page_lens.min() >= 1
        assert rows.last_page_lens.max() <= rows.page_size
        assert {t.dtype for t in (starts, rows.last_page_lens, rows.pages)} == {torch.int32}
        table = torch.full((rows.num_rows, int(counts.max())), 2**31 - 1, dtype=torch.int32)
        for row in range(rows.num_rows):
            table[row, : counts[row]] = rows.pages[starts[row] : starts[row + 1]]
        q_starts = (
            torch.arange(rows.num_rows + 1, dtype=torch.int32) if rows.q_starts is None else rows.q_starts
        )
        kv_lens = (counts - 1) * rows.page_size + rows.last_page_lens
        assert q_starts.dtype is torch.int32
        self.plan = PagedAttentionPlan(table, q_starts, kv_lens, rows.page_size, 0, 0)
        self.scoring = scoring

    def run(self, q, paged_kv_cache, *, out, enable_pdl):
        assert out.is_contiguous()
        return out.copy_(paged_attention_reference(q, *paged_kv_cache, self.plan, self.scoring))
