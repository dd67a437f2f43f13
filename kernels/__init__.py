"""Compute kernels, one file per operation: launcher, C path for the CPU, torch reference of one signature."""
