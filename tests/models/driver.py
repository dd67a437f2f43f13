"""Drives a model by hand: the smallest thing that turns token lists into steps over a paged cache."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from rootlet.cache.kv_cache import KVCache
from rootlet.kernels.attention import AttentionPlan, PagedAttentionPlan
from rootlet.models.forward import ForwardInput, GroupStep, WantedTokens


class Driver:
    """Sequences by name, each with pages scattered over the cache in a random order."""

    def __init__(self, model, page_size: int, num_pages: int = 256) -> None:
        self.model = model
        self.page_size = page_size
        self.kv = KVCache(model.kv_spec(page_size), num_pages, model.device)
        self.free_pages = list(range(1, num_pages))
        random.Random(0).shuffle(self.free_pages)
        self.pages: dict[str, list[int]] = {}
        self.lengths: dict[str, int] = {}

    def step(
        self, tokens: dict[str, list[int]], *, wanted: list[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """Append tokens to each named sequence in one forward pass; logits ``[n, V]`` of each.

        With ``wanted`` those of the last token alone ``[1, V]``, of these sequences.
        """
        positions, slots = [], []
        for name, ids in tokens.items():
            start = self.lengths.get(name, 0)
            self.lengths[name] = start + len(ids)
            pages = self.pages.setdefault(name, [])
            while len(pages) * self.page_size < self.lengths[name]:
                pages.append(self.free_pages.pop())
            for position in range(start, self.lengths[name]):
                positions.append(position)
                slots.append(pages[position // self.page_size] * self.page_size + position % self.page_size)
        plan = self._plan(tokens)
        inp = ForwardInput(
            input_ids=torch.tensor([token for ids in tokens.values() for token in ids]),
            positions=torch.tensor(positions),
            groups=[GroupStep(torch.tensor(slots), self.planned(plan))],
        )
        counts = {name: len(ids) for name, ids in tokens.items()}
        if wanted is not None:
            inp = replace(inp, wanted=self._wanted(plan, list(tokens), wanted))
            counts = {name: 1 for name in tokens if name in wanted}
        with torch.inference_mode():
            logits = self.model.compute_logits(self.model.forward(inp, self.kv))
        return dict(zip(counts, logits.split(list(counts.values()))))

    def _wanted(self, plan: PagedAttentionPlan, names: list[str], wanted: list[str]) -> WantedTokens:
        rows = torch.tensor([row for row, name in enumerate(names) if name in wanted], dtype=torch.int64)
        single = replace(
            plan,
            page_table=plan.page_table[rows],
            q_starts=torch.arange(len(rows) + 1, dtype=torch.int32),
            kv_lens=plan.kv_lens[rows],
            max_q=1,
        )
        return WantedTokens(plan.q_starts[1:].long()[rows] - 1, [self.planned(single)])

    def planned(self, plan: PagedAttentionPlan) -> AttentionPlan:
        """Who computes what the plan says."""
        return plan

    def _plan(self, tokens: dict[str, list[int]]) -> PagedAttentionPlan:
        widest = max(len(self.pages[name]) for name in tokens)
        table = [self.pages[name] + [0] * (widest - len(self.pages[name])) for name in tokens]
        counts = [len(ids) for ids in tokens.values()]
        kv_lens = [self.lengths[name] for name in tokens]
        return PagedAttentionPlan(
            page_table=torch.tensor(table, dtype=torch.int32),
            q_starts=torch.tensor([sum(counts[:row]) for row in range(len(counts) + 1)], dtype=torch.int32),
            kv_lens=torch.tensor(kv_lens, dtype=torch.int32),
            page_size=self.page_size,
            max_q=max(counts),
            max_kv=max(kv_lens),
        )

    def run(self, name: str, ids: list[int], chunk: int) -> torch.Tensor:
        """Feed a sequence in chunks; logits of all its tokens ``[len(ids), V]``."""
        parts = [self.step({name: ids[i : i + chunk]})[name] for i in range(0, len(ids), chunk)]
        return torch.cat(parts)

    def greedy(self, name: str, ids: list[int], count: int) -> list[int]:
        """Prefill, then decode ``count`` tokens greedily."""
        tokens: list[int] = []
        logits = self.step({name: ids})[name]
        for _ in range(count):
            tokens.append(int(logits[-1].argmax()))
            logits = self.step({name: tokens[-1:]})[name]
        return tokens
