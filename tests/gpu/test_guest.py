"""A guest on the GPU: it gives all memory back, shares the card and leaves torch's settings alone."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from .tiny import build, generate, requests, saved

MEBI = 2**20
# What the driver keeps for itself after a first engine (loaded kernels) may still grow a little.
SLACK = 64 * MEBI


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved("llama", tmp_path_factory.mktemp("guest"))


@pytest.fixture(scope="module")
def expected(folder):
    with build(folder) as engine:
        return generate(engine, *requests())


def allocated() -> int:
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def free() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


@pytest.mark.parametrize("ending", ["close", "with", "del"])
@pytest.mark.parametrize("options", [{}, {"disable_cuda_graph": True}], ids=["graphs", "eager"])
def test_memory_comes_back(folder, ending, options):
    """To the byte for torch's allocator, up to the driver's own for the card."""

    def once():
        engine = build(folder, kv_cache_bytes=256 * MEBI, max_total_tokens=None, **options)
        generate(engine, *requests())
        if ending == "with":
            with engine:
                pass
        elif ending == "close":
            engine.close()
        del engine

    once()
    before, free_before = allocated(), free()
    for _ in range(3):
        once()
        assert allocated() == before
    assert free() > free_before - SLACK


def test_an_engine_that_never_ran_gives_its_memory_back(folder):
    build(folder).close()
    before = allocated()
    engine = build(folder, kv_cache_bytes=256 * MEBI, max_total_tokens=None)
    assert allocated() > before + 200 * MEBI
    engine.close()
    assert allocated() == before


def test_two_engines_on_one_card(folder, expected):
    """Side by side on two threads; then one alone, the other closed. Pools at their default size."""
    with build(folder, max_total_tokens=None) as one, build(folder, max_total_tokens=None) as two:
        results: dict[str, list] = {}

        def work(name, engine):
            results[name] = generate(engine, *requests())

        threads = [threading.Thread(target=work, args=item) for item in (("one", one), ("two", two))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {"one": expected, "two": expected}
        one.close()
        assert generate(two, *requests()) == expected


def test_torch_is_as_it_was(folder):
    def state():
        matmul = torch.backends.cuda.matmul
        return (
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.get_float32_matmul_precision(),
            matmul.allow_bf16_reduced_precision_reduction,
            matmul.allow_fp16_reduced_precision_reduction,
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.cuda.current_device(),
            torch.cuda.current_stream(),
            torch.cuda.get_rng_state().tolist(),
            torch.random.get_rng_state().tolist(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.cuda.is_current_stream_capturing(),
        )

    before = state()
    with build(folder) as engine:
        assert state() == before
        generate(engine, *requests(), temperature=1.0, top_p=0.9)
    assert state() == before


class Host:
    """The user's own work on the GPU, on a thread and a stream of its own, checked all the time."""

    def __init__(self, work) -> None:
        self.rounds = 0
        self.failure: BaseException | None = None
        self._work = work
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        stream = torch.cuda.Stream()
        try:
            with torch.cuda.stream(stream):
                while not self._stop.is_set():
                    self._work(stream)
                    self.rounds += 1
        except BaseException as failure:  # the test looks at it
            self.failure = failure


def multiply(stream) -> None:
    """New tensors of changing sizes, a product and its known sum."""
    for size in (64, 300, 1024):
        a = torch.full((size, size), 2.0, device="cuda")
        product = a @ torch.eye(size, device="cuda")
        stream.synchronize()
        assert product.sum().item() == 2.0 * size * size


def capture(stream) -> None:
    """A CUDA graph of the host's own: captured, replayed, its result checked.

    Not by ``torch.cuda.graph``, which waits for the whole device and empties torch's memory cache first.
    """
    x = torch.zeros(1000, device="cuda")
    graph = torch.cuda.CUDAGraph()
    stream.synchronize()
    graph.capture_begin(capture_error_mode="thread_local")
    y = x * 3 + 1
    graph.capture_end()
    x.fill_(5)
    graph.replay()
    stream.synchronize()
    assert y.eq(16).all().item()


@pytest.mark.parametrize("options", [{}, {"disable_cuda_graph": True}], ids=["graphs", "eager"])
def test_beside_the_hosts_own_work(folder, expected, options):
    """While engines are built, capture their graphs, run and end, the host's stream goes on."""
    with Host(multiply) as host:
        for _ in range(3):
            with build(folder, **options) as engine:
                assert generate(engine, *requests()) == expected
    assert host.failure is None, repr(host.failure)
    assert host.rounds > 3


@pytest.mark.parametrize("options", [{}, {"disable_cuda_graph": True}], ids=["graphs", "eager"])
def test_beside_captures_of_the_host(folder, expected, options):
    """Nothing an engine does while it runs disturbs a capture on another thread, and the other way round."""
    with build(folder, **options) as engine:
        generate(engine, *requests())  # an engine that captures on first use has done so now
        with Host(capture) as host:
            for _ in range(5):
                engine.flush_cache()
                assert generate(engine, *requests()) == expected
    assert host.failure is None, repr(host.failure)
    assert host.rounds > 3


def test_called_on_a_stream_of_the_host(folder, expected):
    """The engine's stream is its own: what is queued on the caller's neither delays nor changes it."""
    stream = torch.cuda.Stream()
    with build(folder) as engine, torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # a tenth of a second of clock cycles
        assert generate(engine, *requests()) == expected
        assert torch.cuda.current_stream() == stream
    stream.synchronize()


def test_many_threads_share_one_engine(folder, expected):
    prompts, lengths = requests()
    got: dict[int, list[int]] = {}
    with build(folder) as engine:

        def work(i):
            [got[i]] = generate(engine, [prompts[i]], [lengths[i]])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [got[i] for i in range(len(prompts))] == expected
