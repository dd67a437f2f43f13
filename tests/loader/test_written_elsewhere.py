"""Model folders as other tools leave them: loaded, with the tokens of the model in them, or refused by name.

Each is built on the spot, in the form and with the leftovers of its tool.
"""

from __future__ import annotations

import json
import pickle

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

import rootlet
from rootlet.errors import ConfigError, ModelError, WeightsError
from rootlet.models.loader import load_model

from .tiny import random_model, write_model
from .vocabularies import byte_letters

PROMPT = [5, 9, 3, 40]


@pytest.fixture(scope="module")
def model():
    return random_model("llama", vocab_size=300)


@pytest.fixture(scope="module")
def other():
    """Another model of the same shape, whose files lie about."""
    return random_model("llama", vocab_size=300, initializer_range=0.5)


def greedy(model, count: int = 8) -> list[int]:
    ids = list(PROMPT)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


def state_of(model, dtype=torch.float32):
    return {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}


def write_json(file, **content) -> None:
    file.write_text(json.dumps(content))


def edit(folder, drop=(), **fields) -> None:
    content = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", **{k: v for k, v in (content | fields).items() if k not in drop})


def save_shards(folder, state, count, stem="model", suffix=".safetensors") -> None:
    names = sorted(state)
    weight_map = {}
    for i in range(count):
        file = f"{stem}-{i + 1:05}-of-{count:05}{suffix}"
        part = {name: state[name] for name in names[i::count]}
        weight_map |= dict.fromkeys(part, file)
        save_file(part, folder / file) if suffix == ".safetensors" else torch.save(part, folder / file)
    write_json(folder / f"{stem}{suffix}.index.json", metadata={"total_size": 1}, weight_map=weight_map)


# what each tool writes: (folder, model, another model)


def transformers_4(folder, model, other):
    model.save_pretrained(folder)
    edit(
        folder,
        drop=("rope_parameters", "dtype"),
        **{
            "_name_or_path": "someone/base",
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "torch_dtype": "float32",
        },
        **{
            "transformers_version": "4.31.0",
            "pretraining_tp": 1,
            "quantization_config": None,
            "head_dim": None,
        },
        **{"use_cache": True, "_attn_implementation_autoset": True, "a_field_of_tomorrow": {"x": [1]}},
    )
    write_json(
        folder / "generation_config.json", _from_model_config=True, eos_token_id=[2, 7], temperature=None
    )


def transformers_5(folder, model, other):
    model.save_pretrained(folder)
    edit(folder, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}, dtype="float32")


def trainer_checkpoint(folder, model, other):
    model.save_pretrained(folder, max_shard_size="60KB")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "optimizer.bin"):
        (folder / name).write_bytes(pickle.dumps(ValueError))
    write_json(folder / "trainer_state.json", epoch=1.0)
    (folder / "global_step50").mkdir()
    (folder / "global_step50" / "mp_rank_00_model_states.pt").write_bytes(b"x")
    (folder / "checkpoint-50").mkdir()
    other.save_pretrained(folder / "checkpoint-50")


def axolotl_merge(folder, model, other):
    """Full weights saved into the folder of the adapter, once in shards and once as a file."""
    save_shards(folder, state_of(other), 2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    model.save_pretrained(folder)
    write_json(folder / "adapter_config.json", base_model_name_or_path="someone/base", peft_type="LORA")
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2)}, folder / "adapter_model.safetensors")


def unsloth_merge(folder, model, other):
    model.save_pretrained(folder)
    edit(folder, torch_dtype="float32", unsloth_fixed=True, unsloth_version="2024.9", pad_token_id=299)


def mlx_convert(folder, model, other):
    """One file of bf16 and an index that names it."""
    model.config.save_pretrained(folder)
    state = state_of(model)
    save_file(state, folder / "model.safetensors", metadata={"format": "mlx"})
    names = dict.fromkeys(state, "model.safetensors")
    write_json(folder / "model.safetensors.index.json", metadata={"total_size": 1}, weight_map=names)
    edit(folder, drop=("dtype", "torch_dtype", "architectures"), eos_token_id=[2, 7])


def mergekit_merge(folder, model, other):
    """A single shard with an index; the config says bfloat16 whatever came out."""
    model.config.save_pretrained(folder)
    save_shards(folder, state_of(model), 1)
    edit(folder, drop=("dtype",), torch_dtype="bfloat16", transformers_version="4.45.1")
    (folder / "mergekit_config.yml").write_text("merge_method: slerp\n")


def compiled_and_parallel(folder, model, other):
    model.config.save_pretrained(folder)
    torch.save({f"_orig_mod.module.{k}": v for k, v in state_of(model).items()}, folder / "pytorch_model.bin")


def peft_wrapped(folder, model, other):
    """Merged, and saved from inside the wrapper."""
    model.config.save_pretrained(folder)
    save_file({f"base_model.model.{k}": v for k, v in state_of(model).items()}, folder / "model.safetensors")


def mistral_repository(folder, model, other):
    """Both forms of the weights, and the author's own parameters."""
    model.config.save_pretrained(folder)
    save_shards(folder, state_of(model), 2)
    save_file({"tok_embeddings.weight": torch.zeros(2, 2)}, folder / "consolidated.safetensors")
    save_file({"x": torch.zeros(2)}, folder / "consolidated-00001-of-00001.safetensors")
    write_json(folder / "params.json", dim=64)
    write_json(folder / "tekken.json", version="v3")


def old_llama_bins(folder, model, other):
    """Shards of torch.save with the buffers that checkpoints had in 2023."""
    model.config.save_pretrained(folder)
    state = state_of(model)
    for layer in range(2):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_shards(folder, state, 2, "pytorch_model", ".bin")


def both_forms(folder, model, other):
    """safetensors beside a .bin of before, as the Hub's conversion left them, and a variant."""
    model.save_pretrained(folder)
    torch.save(state_of(other), folder / "pytorch_model.bin")
    write_json(folder / "pytorch_model.bin.index.json", weight_map={"x": "pytorch_model-00001-of-00009.bin"})
    save_file(state_of(other, torch.float16), folder / "model.fp16.safetensors")


def byte_order_mark(folder, model, other):
    """As some editors save a file that was changed by hand."""
    model.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text, encoding="utf-8-sig")


def llama_cpp_converter(folder, model, other):
    write_model(folder / "tiny-F32.gguf", model, "llama")
    write_json(folder / "imatrix.json")


WRITERS = [
    *(transformers_4, transformers_5, trainer_checkpoint, axolotl_merge, unsloth_merge, mlx_convert),
    *(mergekit_merge, compiled_and_parallel, peft_wrapped, mistral_repository, old_llama_bins, both_forms),
    *(byte_order_mark, llama_cpp_converter),
]


@pytest.mark.parametrize("write", WRITERS)
def test_loaded(tmp_path, model, other, write):
    write(tmp_path, model, other)
    options = {"dtype": "float32", "max_total_tokens": 512, "skip_tokenizer_init": True}
    with rootlet.Engine(str(tmp_path), **options) as engine:
        params = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
        got = engine.generate(input_ids=PROMPT, sampling_params=params)
    assert list(got.token_ids) == greedy(model)


def test_a_base_model_saved_without_its_prefix(tmp_path, qwen2):
    """AutoModel.save_pretrained: with a tied head nothing is missing; transformers loads it too."""
    qwen2.config.save_pretrained(tmp_path)
    bare = {name.removeprefix("model."): tensor for name, tensor in qwen2.model.state_dict().items()}
    save_file(bare, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path).model
    assert torch.equal(loaded.get_weight("model.norm.weight"), qwen2.state_dict()["model.norm.weight"])


def test_an_embedding_model_saved_with_the_prefix_of_the_whole(tmp_path, llama):
    state = {name: tensor for name, tensor in llama.state_dict().items() if not name.startswith("lm_head")}
    llama.config.save_pretrained(tmp_path)
    edit(tmp_path, architectures=["LlamaModel"])
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path).model
    assert torch.equal(loaded.get_weight("norm.weight"), llama.state_dict()["model.norm.weight"])


def test_a_bare_model_without_a_head_is_told_so(tmp_path, llama):
    llama.config.save_pretrained(tmp_path)
    save_file(llama.model.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing \(1\): lm_head\.weight\."):
        load_model(tmp_path)


def test_a_merge_that_left_the_quantization_behind(tmp_path, model):
    model.save_pretrained(tmp_path)
    edit(tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(ModelError, match=r"'bitsandbytes' is not supported.*\"quantization_config\": null"):
        load_model(tmp_path)
    load_model(tmp_path, json_model_override_args={"quantization_config": None})


# what we do not take, by name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quant_method 'gptq'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method 'awq'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quant_method 'fp8'"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "'compressed-tensors'"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quant_method 'mlx'"),
        ({"quantization_config": {"group_size": 64, "bits": 4}}, "quant_method 'mlx'"),
    ],
)
def test_quantized(tmp_path, model, fields, message):
    model.config.save_pretrained(tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(ModelError, match=message):  # although there are no weights
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("base_layer.weight", None),
        ("lora_A.default.weight", "a LoRA adapter that was not merged"),
        ("qweight", "GPTQ or AWQ"),
        ("weight.absmax", "bitsandbytes"),
        ("weight_scale_inv", "FP8"),
        ("scales", "MLX"),
    ],
)
def test_tensors_of_other_forms(tmp_path, model, ending, message):
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {**state, f"model.layers.0.mlp.up_proj.{ending}": torch.ones(2)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(WeightsError, match=message or "leftover"):
        load_model(tmp_path)


UNSUPPORTED = {
    "LlavaForConditionalGeneration": {"model_type": "llava", "text_config": {}, "vision_config": {}},
    "T5ForConditionalGeneration": {"model_type": "t5", "d_model": 8},
    "BertModel": {"model_type": "bert", "vocab_size": -5},
    "Gemma3ForCausalLM": {"quantization_config": {"quant_method": "gptq"}},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_the_architecture_comes_first(tmp_path, name):
    """Before fields, files and quantization are asked for."""
    write_json(tmp_path / "config.json", architectures=[name], **UNSUPPORTED[name])
    expected = (
        rf"\['{name}'\] are not supported.*Supported: LlamaEmbeddingModel, LlamaForCausalLM.*register_model"
    )
    with pytest.raises(ModelError, match=expected):
        load_model(tmp_path)


def test_a_model_type_alone(tmp_path):
    write_json(tmp_path / "config.json", model_type="mamba2")
    with pytest.raises(ModelError, match=r"model_type 'mamba2' is not supported.*llama, mistral, qwen2"):
        load_model(tmp_path)
    write_json(tmp_path / "config.json", model_type="mistrall")
    with pytest.raises(ModelError, match="Did you mean 'mistral'"):
        load_model(tmp_path)
    write_json(tmp_path / "config.json", architectures=["QwenForCausalLM"])
    with pytest.raises(ModelError, match="Did you mean 'Qwen2ForCausalLM'"):
        load_model(tmp_path)


def test_folders_that_are_no_model(tmp_path, llama):
    with pytest.raises(ModelError, match="the folder is empty"):
        load_model(tmp_path)
    llama.save_pretrained(tmp_path / "models--a--b" / "snapshots")
    with pytest.raises(ModelError, match=r"no config\.json.*Did you mean .*snapshots"):
        load_model(tmp_path)
    (tmp_path / "models--a--b" / "snapshots" / "1_Pooling").mkdir()
    (tmp_path / "models--a--b" / "snapshots" / "1_Pooling" / "x").touch()
    with pytest.raises(ModelError, match=r"no config\.json.*Did you mean .*snapshots\?"):
        load_model(tmp_path / "models--a--b" / "snapshots" / "1_Pooling")
    with pytest.raises(
        ConfigError, match=r"is a file but not GGUF; give the folder of the model, '.*snapshots'"
    ):
        load_model(tmp_path / "models--a--b" / "snapshots" / "model.safetensors")
    write_json(tmp_path / "model_index.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(ModelError, match=r"pipeline of diffusers \('StableDiffusionPipeline'\)"):
        load_model(tmp_path)


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter(tmp_path, llama, with_config):
    """PEFT writes no config.json, axolotl does."""
    write_json(tmp_path / "adapter_config.json", base_model_name_or_path="someone/base", peft_type="LORA")
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    if with_config:
        llama.config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"an adapter .* of 'someone/base', not a whole model: merge"):
        load_model(tmp_path)


def test_gguf_files_of_other_kinds(tmp_path, llama):
    write_model(tmp_path / "a.gguf", llama, "qwen3moe")
    with pytest.raises(ModelError, match="architecture 'qwen3moe' is not supported; supported: llama, qwen2"):
        load_model(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").unlink()
    for part in (1, 2, 3):  # as llama-gguf-split writes them: only the first says what it is
        writer = gguf.GGUFWriter(tmp_path / f"m-{part:05}-of-00003.gguf", "llama")
        writer.add_uint16("split.count", 3)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    for path in (tmp_path, tmp_path / "m-00002-of-00003.gguf"):
        with pytest.raises(ModelError, match=r"one of 3 parts of a split model.*llama-gguf-split --merge"):
            load_model(path)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


@pytest.mark.parametrize("end_kind", [3, 4], ids=["control", "user-defined"])
@pytest.mark.parametrize("eos", ["<|endoftext|>", None])
def test_a_chat_of_a_gguf_file_with_the_eos_of_its_base_model_stops(tmp_path, end_kind, eos):
    """The file never says that <|im_end|> ends anything, and the model says nothing else."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*(letter for _, letter in sorted(byte_letters().items())), "\u0120a", *special]
    model = random_model("llama", vocab_size=len(tokens))
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 50.0
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokens.index("<|im_end|>"), 0] = 5.0

    def vocabulary(writer):
        for key in ("eos_token_id", "bos_token_id"):
            writer.kv_data[0].pop(f"tokenizer.ggml.{key}")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(tokens)
        writer.add_token_types([1] * 257 + [3, 3, end_kind])
        writer.add_token_merges(["\u0120 a"])
        writer.add_chat_template(CHATML)
        if eos:
            writer.add_eos_token_id(tokens.index(eos))

    path = write_model(tmp_path / "m.gguf", model, "llama", extra=vocabulary)
    with rootlet.Engine(str(path), max_total_tokens=1024) as engine:
        out = engine.chat([{"role": "user", "content": "Hi"}], {"temperature": 0, "max_new_tokens": 8})
    assert (out.finish_reason, out.output.completion_tokens, out.content) == ("stop", 1, "")
