"""Weights from a trainer's process to an engine's: what both sides use, and needs no engine.

`WeightsGroup` (group.py) broadcasts tensors, `weights_buckets` (buckets.py) lays them into buffers, and
`ipc_handle` (ipc.py) names a buffer to another process of this machine. `rootlet` has all three.
"""
