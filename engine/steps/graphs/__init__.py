"""Steps recorded as CUDA graphs: one launch instead of hundreds, nothing built on the host."""
