"""The residual stream: the same sums whoever adds them, and promises that cannot be kept too late."""

from __future__ import annotations

import pytest
import torch

from rootlet.kernels import device, norm
from rootlet.kernels.attention import PagedAttentionPlan
from rootlet.kernels.matrices import dense
from rootlet.models.forward import ForwardInput, GroupStep, WantedTokens
from rootlet.models.layers.linear import Linear
from rootlet.models.layers.matrices import FloatMatrix
from rootlet.models.layers.norm import RMSNorm
from rootlet.models.layers.residual import Promise, Residual, as_tensor
from rootlet.models.layers.slots import whole

HIDDEN, TOKENS = 32, 3


@pytest.fixture(params=["cpu", "gpu"])
def kernels(request, monkeypatch):
    """The CPU's kernels, then the GPU's in Triton's interpreter, which add while they multiply."""
    if request.param == "gpu":
        pytest.importorskip("supported_triton")
        for module in (dense, norm):
            monkeypatch.setattr(module, "on_gpu", lambda tensor: True)
    return request.param


def make_norm(seed: int) -> RMSNorm:
    made = RMSNorm(HIDDEN, 1e-5, torch.float32, torch.device("cpu"))
    whole(made.weight).load(1 + 0.2 * randn(HIDDEN, seed=seed))
    return made


def make_linear(seed: int) -> Linear:
    made = Linear({"a": HIDDEN}, [FloatMatrix((HIDDEN, HIDDEN), torch.float32, torch.device("cpu"))])
    dict(made.weights())["a.weight"].load(0.2 * randn(HIDDEN, HIDDEN, seed=seed))
    return made


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(layer: Linear) -> torch.Tensor:
    return dict(layer.weights())["a.weight"].get()


def rms(x: torch.Tensor, made: RMSNorm) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + made.eps) * made.weight.data


@pytest.fixture
def step() -> ForwardInput:
    tokens = torch.zeros(TOKENS, dtype=torch.int64)
    return ForwardInput(tokens, tokens, [GroupStep(tokens, None)])


def test_pre_norm(kernels, step):
    x, norms, layers = (
        randn(TOKENS, HIDDEN, seed=0),
        [make_norm(1), make_norm(2)],
        [make_linear(3), make_linear(4)],
    )
    stream, want = Residual(x.clone()), x
    for made, layer in zip(norms, layers):
        inner = layer.forward(stream.promised(made), step)
        layer.forward_into(inner, step, stream)
        want = want + rms(want, made) @ weight_of(layer).T @ weight_of(layer).T
    torch.testing.assert_close(stream.normed(norms[0]), rms(want, norms[0]))


def test_on_a_cpu_the_sum_is_left_to_what_comes_next(step):
    """Adding costs a pass of its own there, which the next norm makes anyway."""
    x, layer = randn(TOKENS, HIDDEN, seed=0), make_linear(1)
    values = x.clone()
    stream = Residual(values)
    layer.forward_into(x, step, stream)
    assert torch.equal(values, x)
    assert torch.equal(stream.in_place(), x + layer.forward(x, step))
    assert stream.in_place() is values


def test_a_branch_is_normalised_before_it_is_added(kernels, step):
    """Sandwich and post-norm: the product must not add by itself."""
    x, before, after, layer = randn(TOKENS, HIDDEN, seed=0), make_norm(1), make_norm(2), make_linear(3)
    stream = Residual(x.clone())
    stream.add(after.forward(layer.forward(stream.promised(before), step)))
    want = x + rms(rms(x, before) @ weight_of(layer).T, after)
    stream.add(after.forward(layer.forward(stream.promised(None), step)))
    want = want + rms(want @ weight_of(layer).T, after)
    torch.testing.assert_close(stream.normed(before), rms(want, before))


def test_branches_side_by_side_share_one_input(kernels, step):
    x, made, first, second = randn(TOKENS, HIDDEN, seed=0), make_norm(1), make_linear(2), make_linear(3)
    stream = Residual(x.clone())
    normed = stream.normed(made)
    first.forward_into(normed, step, stream)
    second.forward_into(normed, step, stream)
    want = x + rms(x, made) @ (weight_of(first) + weight_of(second)).T
    torch.testing.assert_close(stream.normed(made), rms(want, made))


def test_a_product_in_parts_is_summed_before_it_is_added(kernels, step):
    """As ranks would that hold columns of one weight each: every one has all of the stream."""
    x, made, layers = randn(TOKENS, HIDDEN, seed=0), make_norm(1), [make_linear(2), make_linear(3)]
    streams = [Residual(x.clone()) for _ in layers]
    branches = [layer.forward(s.promised(made), step) for s, layer in zip(streams, layers)]
    want = x + rms(x, made) @ sum(weight_of(layer) for layer in layers).T
    for stream in streams:
        stream.add(sum(branches))
        torch.testing.assert_close(stream.normed(made), rms(want, made))


def test_wanted_tokens_are_kept_after_the_first_norm(kernels, step):
    x, made, layer = randn(TOKENS, HIDDEN, seed=0), make_norm(1), make_linear(2)
    plan = PagedAttentionPlan(None, None, None, 1, 1, 1)
    tokens, places = step.input_ids, WantedTokens(torch.tensor([0, 2]), [plan])
    wanted = ForwardInput(tokens, tokens, [GroupStep(tokens, plan)], wanted=places)
    stream = Residual(x.clone())
    normed = stream.promised(made)
    stream.keep(wanted)
    layer.forward_into(wanted.keep(layer.forward(normed, wanted)), wanted, stream)
    want = x + rms(x, made) @ weight_of(layer).T @ weight_of(layer).T
    torch.testing.assert_close(stream.normed(made), rms(want, made)[[0, 2]])


@pytest.mark.parametrize("adds", ["branch", "product"])
def test_a_promise_is_good_until_something_is_added(kernels, step, adds):
    made, layer = make_norm(1), make_linear(2)
    stream = Residual(randn(TOKENS, HIDDEN, seed=0))
    late = stream.promised(made)
    if adds == "branch":
        stream.add(torch.ones(TOKENS, HIDDEN))
    else:
        layer.forward_into(torch.ones(TOKENS, HIDDEN), step, stream)
    with pytest.raises(AssertionError, match="after something was added"):
        layer.forward(late, step)


def test_a_promise_is_good_once(kernels, step):
    layer, stream = make_linear(2), Residual(randn(TOKENS, HIDDEN, seed=0))
    promise = stream.promised(make_norm(1))
    assert isinstance(promise, Promise)
    layer.forward(promise, step)
    with pytest.raises(AssertionError, match="a second time"):
        layer.forward(promise, step)


def test_a_part_may_ask_for_a_tensor(kernels):
    x, made = randn(TOKENS, HIDDEN, seed=0), make_norm(1)
    stream = Residual(x.clone())
    torch.testing.assert_close(as_tensor(stream.promised(made)), rms(x, made))
    plain = as_tensor(stream.promised(None))
    stream.add(torch.ones_like(x))
    stream.normed(made)
    assert torch.equal(plain, x)
    assert as_tensor(plain) is plain


def test_a_branch_of_other_rows_is_refused():
    stream = Residual(randn(TOKENS, HIDDEN, seed=0))
    stream.add(torch.ones(1, HIDDEN))
    with pytest.raises(AssertionError, match=r"\[1, 32\] was added to a stream \[3, 32\]"):
        stream.in_place()


def test_the_gpus_kernels_are_asked_for_by_the_tensor():
    assert not device.on_gpu(torch.zeros(1))
