"""Formats of matrices: each class holds ``[N, K]`` in the memory layout that its multiplication reads."""
