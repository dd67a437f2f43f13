"""Handles of buffers that are no handles, or name what cannot be opened: refused with the reason."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor, shared_cache

import rootlet
from rootlet.errors import WeightsError

PARAMS = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def engine(tiny_model):
    options = {"load_format": "dummy", "skip_tokenizer_init": True, "max_total_tokens": 256}
    with rootlet.Engine(tiny_model, device="cpu", dtype="float32", **options) as made:
        yield made


@pytest.fixture(autouse=True)
def the_old_version_serves_on(engine):
    sums, version = engine.weights_checksum(), engine.weights_version
    output = engine.generate(input_ids=[1, 2, 3], sampling_params=PARAMS)
    yield
    assert (engine.weights_checksum(), engine.weights_version) == (sums, version)
    assert engine.generate(input_ids=[1, 2, 3], sampling_params=PARAMS).token_ids == output.token_ids


CUDA_ARGUMENTS = (
    torch.Tensor, torch.Size([256]), (1,), 0, torch.UntypedStorage, torch.uint8, 0, b"memory", 256, 0, False,
    b"counter", 0, b"event", True,
)  # fmt: skip
CUDA_HANDLE = {
    "device": "cuda", "uuid": "GPU-1", "pid": 1, "nbytes": 256, "offset": 0, "memory": b"m",
    "memory_nbytes": 256, "memory_offset": 0, "counter": b"c", "counter_offset": 0, "event": b"e",
    "needs_event": True,
}  # fmt: skip
CPU_HANDLE = {"device": "cpu", "pid": os.getpid(), "fd": 0, "offset": 0, "nbytes": 8}


class Evil:
    """Runs what it likes when it is unpickled."""

    def __reduce__(self):
        return os.abort, ()


def changed(**arguments):
    names = ["cls", "size", "stride", "offset", "storage", "dtype"]
    return tuple(arguments.get(name, value) for name, value in zip([*names, *"_________"], CUDA_ARGUMENTS))


@pytest.mark.parametrize(
    ("handle", "message"),
    [
        (3, "A handle is rootlet.ipc_handle"),
        ({"device": "tpu"}, "A handle is rootlet.ipc_handle"),
        (("f", ()), "A handle is rootlet.ipc_handle"),
        ((os.abort, ()), "A handle is rootlet.ipc_handle"),
        (pickle.dumps(Evil()), "abort is no part of a handle"),
        (pickle.dumps((rebuild_cuda_tensor, (Evil(),))), "abort is no part of a handle"),
        (b"damaged", "cannot be read"),
        ((rebuild_cuda_tensor, CUDA_ARGUMENTS[:-1]), "torch of another release"),
        ((rebuild_cuda_tensor, changed(dtype=torch.float32)), "of uint8, got torch.float32"),
        ((rebuild_cuda_tensor, changed(stride=(2,))), "contiguous"),
        ((rebuild_cuda_tensor, changed(offset=-1)), "'offset' must be int"),
        ((rebuild_cuda_tensor, changed(offset=8)), "256 bytes at 8 of 256"),
        ((rebuild_cuda_tensor, CUDA_ARGUMENTS), "trainer's GPU 0, and this process sees"),
        (pickle.dumps((rebuild_cuda_tensor, CUDA_ARGUMENTS)), "trainer's GPU 0, and this process sees"),
        (CUDA_HANDLE, "GPU 'GPU-1', and this process sees .*CUDA_VISIBLE_DEVICES"),
        (CUDA_HANDLE | {"pid": os.getpid()}, "this process's own.*add_bucket"),
        (CUDA_HANDLE | {"memory": "m"}, "'memory' must be bytes"),
        (CUDA_HANDLE | {"needs_event": 1}, "'needs_event' must be bool"),
        (CPU_HANDLE | {"fd": -1}, "'fd' must be int"),
        (CPU_HANDLE | {"fd": True}, "'fd' must be int"),
        (CPU_HANDLE | {"fd": "../mem"}, "'fd' must be int"),
        (CPU_HANDLE | {"fd": 99_999}, "cannot be opened"),
        (CPU_HANDLE, "cannot be opened|no longer there"),  # standard input
    ],
)
def test_wrong_handles(engine, handle, message):
    with pytest.raises(WeightsError, match=message):
        engine.update_weights_from_ipc([(handle, [])])


def test_handles_of_this_process_and_of_less_memory(engine):
    shared_cache[b"memory"] = None  # as torch notes what it made a handle of
    try:
        with pytest.raises(WeightsError, match="this process's own"):
            engine.update_weights_from_ipc([((rebuild_cuda_tensor, CUDA_ARGUMENTS), [])])
    finally:
        del shared_cache[b"memory"]
    [(buffer, entries)] = rootlet.weights_buckets([(NORM, torch.ones(64))], size=256)
    handle = rootlet.ipc_handle(buffer)
    with pytest.raises(WeightsError, match="no longer there"):
        engine.update_weights_from_ipc([(handle | {"nbytes": 1 << 30}, entries)])
    with pytest.raises(WeightsError, match="pairs of handle and entries"):
        engine.update_weights_from_ipc([handle])
    for wrong in (torch.ones(4), buffer[::2], buffer[:0]):
        with pytest.raises(WeightsError, match="weights_buckets"):
            rootlet.ipc_handle(wrong)
