"""Triton kernels, one file per operation; imported only where a tensor is on a GPU."""
