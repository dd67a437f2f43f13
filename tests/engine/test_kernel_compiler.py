"""Threads compile each variant of a kernel once, and one thread loads them."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("supported_triton")

from rootlet.engine.steps.rehearsal import compiler
from rootlet.engine.steps.rehearsal.compiler import CompilerClosedError, KernelCompiler
from rootlet.kernels.gpu.jit import LOADING, Kernel, Launch, collecting, jit


class FakeKernel:
    """Compiles when told to; ``log`` is what happened, in order."""

    def __init__(self, log, gate=None, error=None):
        self.log = log
        self.gate = gate
        self.error = error

    def variant(self, args, options):
        return args

    def compile(self, args, options):
        if self.gate is not None:
            assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        self.log.append(("compiled", args))
        return SimpleNamespace(src=None, metadata=None, _init_handles=lambda: self.load(args))

    def load(self, args):
        self.log.append(("loaded", args, threading.current_thread()))


@pytest.fixture
def made(monkeypatch):
    """Compilers on the CPU, closed in the end; what is compiled needs no launcher."""
    driver = SimpleNamespace(active=SimpleNamespace(launcher_cls=lambda src, metadata: None))
    monkeypatch.setattr("triton.runtime.driver", driver)
    monkeypatch.setattr(compiler.torch.cuda, "device", lambda _: contextlib.nullcontext())
    one = KernelCompiler(torch.device("cuda"))
    yield one
    one.close()


def test_each_variant_is_compiled_once_and_loaded_behind_all_others(made):
    log, gate = [], threading.Event()
    kernel, slow = FakeKernel(log), FakeKernel(log, gate)
    for _ in range(50):
        for args in ((1,), (2,)):
            made(Launch(kernel, args, {}))
        made(Launch(slow, (3,), {}))
    threading.Timer(0.2, gate.set).start()
    assert made.load() == 3
    assert sorted(args for what, args, *_ in log if what == "compiled") == [(1,), (2,), (3,)]
    assert [what for what, *_ in log] == ["compiled"] * 3 + ["loaded"] * 3
    assert {one[2] for one in log[3:]} == {threading.current_thread()}


def test_what_cannot_be_compiled_is_left_to_its_launch(made):
    log = []
    made(Launch(FakeKernel(log, error=ValueError("no")), (1,), {}))
    made(Launch(FakeKernel(log), (2,), {}))
    assert made.load() == 2
    assert [one[:2] for one in log] == [("compiled", (2,)), ("loaded", (2,))]


def test_closing_drops_what_has_not_begun(made, monkeypatch):
    log, gate = [], threading.Event()
    for number in range(100):
        made(Launch(FakeKernel(log, gate), (number,), {}))
    threading.Timer(0.2, gate.set).start()
    made.close()
    assert len(log) <= compiler._THREADS
    with pytest.raises(CompilerClosedError):
        made(Launch(FakeKernel(log), (0,), {}))


def test_one_thread_of_the_process_loads(made):
    """Engines that are built at once wait for each other, not for each other's kernels."""
    other = KernelCompiler(torch.device("cuda"))
    log, order, gate = [], [], threading.Event()

    def build(one, name):
        with LOADING:
            order.append(name)
            one(Launch(FakeKernel(log, gate), (name,), {}))
            one.load()
            order.append(name)

    threads = [threading.Thread(target=build, args=args) for args in ((made, "a"), (other, "b"))]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    other.close()
    assert order in (["a", "a", "b", "b"], ["b", "b", "a", "a"])


@jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["any_place"])
def _kernel(out, any_place, count, stride, eps, SIZE: tl.constexpr):  # noqa: F821
    pass


def variant(out=None, any_place=None, count=5, stride=5, eps=0.5, size=8, **options):
    numbers = torch.zeros(64, dtype=torch.int32, device="cpu")
    out, any_place = numbers if out is None else out, numbers if any_place is None else any_place
    return _kernel.variant((out, any_place, count, stride, eps), {"SIZE": size} | options)


def test_variants_are_what_triton_compiles_for():
    other = torch.zeros(64, dtype=torch.int32, device="cpu")
    assert variant() == variant(out=other, any_place=other[1:], count=1, stride=7, eps=0.25)
    assert variant() == variant(count=16, any_place=other[3:])
    for different in (
        {"out": other[1:]},
        {"out": other.float()},
        {"any_place": other.long()},
        {"count": 2**40},
        {"stride": 1},
        {"stride": 16},
        {"stride": 2**40},
        {"size": 16},
        {"num_warps": 8},
    ):
        assert variant() != variant(**different)


def test_collected_launches_are_not_made():
    """Of this thread; others launch as ever."""
    found = []
    with collecting(found.append):
        _kernel[(1,)](1, 2, 3, 4, 5, SIZE=8)
        thread = threading.Thread(target=lambda: found.append(Kernel.__getitem__(_kernel, (1,)).__class__))
        thread.start()
        thread.join()
    [launch, launcher] = found
    assert (launch.kernel, launch.args, launch.options) == (_kernel, (1, 2, 3, 4, 5), {"SIZE": 8})
    assert launcher is type(lambda: None)
