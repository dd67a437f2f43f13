"""Exact on-policy: a transformers model that computes with the engine's kernels, to the same bits."""
