"""A toy format of weights that is not in the package: whole numbers, with one scale per row.

A scheme and one registration; every token is that of transformers with the same weights multiplied out, on
the CPU in an engine and through a kernel of the format's own, which Triton interprets here. Some projections
stay floats, so that merged matrices have rows of two formats.
"""

from __future__ import annotations

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import rootlet
from rootlet.errors import ConfigError, ModelError, WeightsError
from rootlet.kernels.host_copies import InlineCopies
from rootlet.kernels.matrices import dense, packing
from rootlet.kernels.products import Product, around
from rootlet.models.layers.matrices import DENSE
from rootlet.models.layers.offload import offload
from rootlet.models.layers.slots import Rows, Shard
from rootlet.models.layers.storage import TensorStore
from rootlet.models.loader import load_model
from rootlet.models.quantization import registry

pytest.importorskip("supported_triton")
import triton
import triton.language as tl

from .driver import Driver
from .gpu_driver import GpuDriver, gpu_kernels  # noqa: F401
from .hf import build_hf, one_thread  # noqa: F401
from .toys import PROMPTS, TINY, build_toy, check_by_gpu_kernels, check_on_the_cpu, greedy

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    **TINY,
    "quantization_config": {"quant_method": "toy_int8", "ignore": ["lm_head", "v_proj", "gate_proj"]},
}


@triton.jit
def _int8_kernel(
    out_ptr, x_ptr, weight_ptr, scale_ptr, N, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Some outputs of a row of x: whole numbers are widened in registers, sums multiplied by their scales."""
    row, k = tl.program_id(0), tl.arange(0, BLOCK)
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x = tl.load(x_ptr + row * K + k, mask=k < K, other=0).to(tl.float32)
    inside = (n[:, None] < N) & (k[None, :] < K)
    weight = tl.load(weight_ptr + n[:, None] * K + k[None, :], mask=inside, other=0).to(tl.float32)
    total = tl.sum(x[None, :] * weight, axis=1) * tl.load(scale_ptr + n, mask=n < N, other=0)
    tl.store(out_ptr + row * N + n, total.to(out_ptr.dtype.element_ty), mask=n < N)


class Int8Matrix:
    """``[N, K]`` int8, and fp32 scales ``[N]``."""

    def __init__(self, weight, scale, dtype):
        self.weight, self.scale = weight, scale
        self.shape, self.dtype = weight.shape, dtype
        self.nbytes = weight.nbytes + scale.nbytes

    def product(self, product):
        return around(product, self.multiply)

    def multiply(self, x, bias, out_dtype):
        if dense.on_gpu(x):
            x = x.contiguous()
            out = torch.empty((len(x), self.shape[0]), dtype=out_dtype or x.dtype)
            (m, n), k, rows = out.shape, x.shape[1], 32
            grid, block = (m, triton.cdiv(n, rows)), triton.next_power_of_2(k)
            _int8_kernel[grid](out, x, self.weight, self.scale, n, k, rows, block)
        else:
            out = (F.linear(x.float(), self.weight.float()) * self.scale).to(out_dtype or x.dtype)
        return out if bias is None else out + bias

    def adds_in_product(self, x):
        return False

    def rows(self, ids):
        return (self.weight[ids] * self.scale[ids, None]).to(self.dtype)

    def dense(self):
        return (self.weight * self.scale[:, None]).to(self.dtype)

    def memory(self):
        return None


class Int8Storage:
    """Two tensors, filled under two names."""

    def __init__(self, shape, dtype, device):
        self.shape, self._dtype = shape, dtype
        self.weight = TensorStore(shape, torch.int8, device)
        self.scale = TensorStore(shape[:1], torch.float32, device)
        self._matrix = None

    @property
    def matrix(self):
        if self._matrix is None:
            self._matrix = Int8Matrix(self.weight.data, self.scale.data, self._dtype)
        return self._matrix

    def slots(self, start, stop, split):
        weight, scale = Rows(self.weight, start, stop), Rows(self.scale, start, stop)
        yield "weight", weight if split is None else Shard(weight, split.dim, split.ranks)
        yield "weight_scale", scale if split is None or split.dim == 1 else Shard(scale, 0, split.ranks)

    def use_batch_invariant_kernels(self):
        raise ConfigError("deterministic=True: toy_int8 has no kernel whose rows are apart.")


class Int8Scheme:
    """What ``quantization_config`` says: every projection, but those whose names end as it lists."""

    def __init__(self, settings):
        self.ignored = tuple(settings.get("ignore", ()))

    def matrices(self, rows, in_features, dtype, device):
        for ignored, group in itertools.groupby(rows.items(), lambda item: item[0].endswith(self.ignored)):
            if ignored:
                yield from DENSE.matrices(dict(group), in_features, dtype, device)
            else:
                yield Int8Storage((sum(count for _, count in group), in_features), dtype, device)


@pytest.fixture(scope="module")
def weights_of_toy():
    """The checkpoint's tensors, and the same as floats."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {})
        registry.register_quantization("toy_int8", Int8Scheme)
        model = build_toy(CONFIG)
        generator = torch.Generator().manual_seed(0)
        stored, floats = {}, {}
        for name, shape in model.weight_shapes.items():
            if model.weight_dtypes[name] is torch.int8:
                stored[name] = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
            elif name.endswith("scale"):
                stored[name] = 0.003 * (1 + torch.rand(shape, generator=generator))
            else:
                stored[name] = ("norm" in name) + 0.2 * torch.randn(shape, generator=generator)
        for name, tensor in stored.items():
            if f"{name}_scale" in stored:
                floats[name] = tensor * stored[f"{name}_scale"][:, None]
            elif not name.endswith("scale"):
                floats[name] = tensor
        yield stored, floats


@pytest.fixture(scope="module")
def toy(tmp_path_factory, weights_of_toy):
    """The folder of a checkpoint, and the tokens that transformers generates for each prompt."""
    stored, floats = weights_of_toy
    folder = tmp_path_factory.mktemp("toy")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(stored, folder / "model.safetensors")
    hf = build_hf("Llama", tie_word_embeddings=False, **TINY)
    hf.load_state_dict(floats)
    with torch.no_grad():
        return str(folder), [
            greedy(lambda ids: hf(torch.tensor([ids])).logits[0, -1], prompt) for prompt in PROMPTS
        ]


def test_which_names_have_which_type(toy):
    model = load_model(toy[0]).model
    at = "model.layers.1.self_attn"
    dtypes = {name.removeprefix(f"{at}."): d for name, d in model.weight_dtypes.items() if at in name}
    assert dtypes == {
        "q_proj.weight": torch.int8,
        "q_proj.weight_scale": torch.float32,
        "k_proj.weight": torch.int8,
        "k_proj.weight_scale": torch.float32,
        "v_proj.weight": torch.float32,
        "o_proj.weight": torch.int8,
        "o_proj.weight_scale": torch.float32,
    }
    assert [
        len(linear.segments) for linear in (model.layers[0].attention.qkv, model.layers[0].mlp.gate_up)
    ] == [2, 2]


@pytest.mark.parametrize("options", [{}, {"chunked_prefill_size": 5, "page_size": 4}])
def test_tokens_on_the_cpu(toy, options):
    check_on_the_cpu(*toy, **options)


def test_tokens_by_a_kernel_of_its_own(toy, gpu_kernels):  # noqa: F811
    check_by_gpu_kernels(*toy)


def test_the_kernel_is_the_formula(gpu_kernels):  # noqa: F811
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-127, 128, (6, 20), generator=generator, dtype=torch.int8)
    matrix = Int8Matrix(weight, torch.rand(6, generator=generator), torch.float32)
    x, bias = torch.randn(3, 20, generator=generator), torch.randn(6, generator=generator)
    product = Product(x, bias, activation="silu")
    torch.testing.assert_close(matrix.product(product), product.reference(matrix.dense()))


def test_weights_come_back_and_are_replaced_in_place(toy, weights_of_toy):
    model, (stored, _) = load_model(toy[0]).model, weights_of_toy
    address = model.get_weight("model.layers.0.mlp.down_proj.weight").data_ptr()
    changed = {name: tensor.flip(0) for name, tensor in stored.items()}
    for weights in (stored, changed):
        model.load_weights(weights.items())
        for name, tensor in weights.items():
            assert torch.equal(model.get_weight(name), tensor)
    assert model.get_weight("model.layers.0.mlp.down_proj.weight").data_ptr() == address
    wrong = {
        **stored,
        "model.layers.0.mlp.up_proj.weight": stored["model.layers.0.mlp.up_proj.weight"].float(),
    }
    with pytest.raises(WeightsError, match=r"torch.float32 \[48, 32\], expected torch.int8 \[48, 32\]"):
        model.load_weights(wrong.items())


def test_offloaded_layers_have_several_tensors(toy, monkeypatch):
    """Whole numbers and scales travel together; results stay the same to the bit."""
    monkeypatch.setattr(packing, "is_multiplied_in_c", lambda dtype: False)  # offloaded rows stay as they are
    plain, model = load_model(toy[0]).model, build_toy(CONFIG)
    model.layers = offload(model.layers, 1 << 30, model.device, lambda device, slots: InlineCopies())
    model.load_weights((name, plain.get_weight(name)) for name in plain.weight_shapes)
    want, got = (Driver(each, page_size=4).run("a", PROMPTS[0], chunk=7) for each in (plain, model))
    assert torch.equal(got, want)


def test_random_weights(toy):
    """Those of ``load_format="dummy"`` have the types of the format."""
    with rootlet.Engine(
        toy[0], load_format="dummy", device="cpu", skip_tokenizer_init=True, max_total_tokens=64
    ) as engine:
        output = engine.generate(input_ids=PROMPTS[1], sampling_params={"max_new_tokens": 3})
    assert len(output.token_ids) == 3


def test_refusals(toy):
    with pytest.raises(ConfigError, match="toy_int8 has no kernel"):
        rootlet.Engine(toy[0], device="cpu", skip_tokenizer_init=True, deterministic=True)
    with pytest.raises(ConfigError, match="already registered"):
        registry.register_quantization("toy_int8", Int8Scheme)
    registry.register_quantization("toy_int8", Int8Scheme, replace=True)
    with pytest.raises(ModelError, match="quant_method 'toy_int4' is not supported"):
        build_toy({**CONFIG, "quantization_config": {"quant_method": "toy_int4"}})
