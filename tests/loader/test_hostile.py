"""Model folders that mean harm, or are broken beyond reason: an error of ours, soon, in little memory."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading

import pytest
import torch
from safetensors.torch import save_file

from rootlet.errors import ConfigError, ModelError, RootletError, WeightsError
from rootlet.models.loader import load_model
from rootlet.models.loader.files import MAX_TEXT_BYTES
from rootlet.models.loader.gguf_file import read_gguf
from rootlet.models.tokenizer import load_tokenizer

HUGE = 2**40


@pytest.fixture(autouse=True)
def _little_memory():
    """What a load may have in use at its worst, against what it had before."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 2**30


@pytest.fixture
def folder(tmp_path, llama):
    llama.save_pretrained(tmp_path)
    return tmp_path


def edit(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def load_both(folder):
    load_model(folder)
    load_tokenizer(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {name: value}
        for name in (
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            *("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta"),
        )
        for value in (HUGE, 10**400, -1, 0, float("nan"), float("inf"), "64", [64], {}, True)
        # these do mean something
        if f"{name}={value}" not in (f"rope_theta={HUGE}", "rms_norm_eps=0", f"rms_norm_eps={HUGE}")
    ],
    ids=lambda fields: "-".join(f"{name}-{str(value)[:5]}" for name, value in fields.items()),
)
def test_absurd_sizes(folder, fields):
    edit(folder, rope_parameters=None, **fields)
    with pytest.raises(ModelError):
        load_model(folder)


def test_what_does_not_fit_is_told_before_anything_is_read(folder):
    """Neither the embedding nor a merged matrix is allocated for shapes that the file does not have."""
    edit(folder, vocab_size=HUGE, intermediate_size=HUGE, num_hidden_layers=10_000)
    calls = []
    with pytest.raises(WeightsError, match=r"missing \(89982\).* and 89972 more.*misshapen") as caught:
        load_model(folder, progress=lambda done, total: calls.append(done))
    assert calls == []
    assert len(str(caught.value)) < 5000


def test_dummy_weights_beyond_the_memory(folder):
    edit(folder, vocab_size=HUGE)
    with pytest.raises(ConfigError, match="GiB are free"):
        load_model(folder, load_format="dummy")


def test_fifty_thousand_tensors(folder):
    names = [f"model.layers.{i}.x" for i in range(50_000)]
    header = {name: f32(0, 0, shape=(0,)) for name in names}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(WeightsError, match=r"leftover \(50000\)") as caught:
        load_model(folder)
    assert len(str(caught.value)) < 5000
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: f"{i}.safetensors" for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="names 50000 files; at most 10000"):
        load_model(folder)
    index = {"weight_map": {name: f"{i % 5000}.safetensors" for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"names 5000 file.*and 4990 more"):
        load_model(folder)


def header_of(**entries) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def f32(*data_offsets, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(data_offsets)}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2**27) + b"{" * 2**20,
        struct.pack("<Q", 100_000) + b'{"a":' * 20_000,
        header_of(a=f32(0, 4), b=f32(0, 4)) + bytes(4),
        header_of(a=f32(0, 4), b=f32(8, 12)) + bytes(12),
        header_of(a=f32(0, 400)) + bytes(4),
        header_of(a=f32(4, 0)) + bytes(4),
        header_of(a=f32(0, 4, shape=(2**40, 2**40))) + bytes(4),
        header_of(a=f32(0, 4, dtype="F64")) + bytes(4),
        header_of(a=f32(0, 4, dtype="X")) + bytes(4),
        header_of(a=f32(-4, 4)) + bytes(4),
        header_of(a=None) + bytes(4),
        header_of(a=[]) + bytes(4),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xfe{}",
        b"",
    ],
    ids=range(16),
)
def test_safetensors_headers_that_lie(folder, data):
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load_model(folder)


def test_a_safetensors_header_that_names_a_tensor_twice(folder):
    text = b'{"a":%s,"a":%s}' % ((json.dumps(f32(0, 4)).encode(), json.dumps(f32(4, 8)).encode()))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(WeightsError):
        load_model(folder)


# files that are none


def make_pipe(path):
    os.mkfifo(path)


def make_device(path):
    path.symlink_to("/dev/zero")


def make_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def make_loop(path):
    path.symlink_to(path.name)


def make_folder(path):
    path.mkdir()


def make_endless(path):
    with path.open("wb") as file:
        file.truncate(MAX_TEXT_BYTES + 1)


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
@pytest.mark.parametrize("make", [make_pipe, make_device, make_socket, make_loop, make_folder])
@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"],
)
def test_special_files(folder, make, name):
    for text in ("tokenizer.json", "tokenizer_config.json"):
        (folder / text).write_text("{}")
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(ModelError):
        load_both(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer.json"])
def test_endless_texts(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    make_endless(folder / name)
    with pytest.raises(ModelError, match=f"{name}: 268435457 bytes; at most"):
        load_model(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
def test_a_path_that_is_no_file(tmp_path):
    make_pipe(tmp_path / "x.gguf")
    with pytest.raises(ConfigError, match="neither a folder nor a file"):
        load_model(tmp_path / "x.gguf")
    make_loop(tmp_path / "loop")
    with pytest.raises(ConfigError, match="no such file or folder"):
        load_model(tmp_path / "loop")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "added_tokens.json",
    ],
)
@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, "1" * 10_000, "\0" * 99]
)
def test_deep_and_odd_json(folder, name, text):
    (folder / "tokenizer.json").write_text("{}")
    if name == "model.safetensors.index.json":
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(text)
    with pytest.raises(ModelError):
        load_both(folder)


class _Bomb:
    def __reduce__(self):
        return (os.system, ("touch bomb-went-off",))


def test_pickles_run_nothing(folder, monkeypatch):
    (folder / "model.safetensors").unlink()
    monkeypatch.chdir(folder)
    torch.save({"model.norm.weight": _Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="more than tensors"):
        load_model(folder)
    assert not (folder / "bomb-went-off").exists()


def test_views_that_repeat_a_little_data(folder, llama):
    """A .bin may stretch one number over a matrix without end; its shape is what counts."""
    (folder / "model.safetensors").unlink()
    state = llama.state_dict()
    state["model.embed_tokens.weight"] = torch.zeros(1).expand(2**40, 64)
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="misshapen"):
        load_model(folder)


def test_a_tensor_of_other_names_than_those_of_the_model_is_not_read(folder, llama):
    save_file({**llama.state_dict(), "more": torch.zeros(4)}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"leftover \(1\): more"):
        load_model(folder)


# GGUF


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def gguf(num_tensors=0, num_entries=1, body=b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_entries) + body


ARCHITECTURE = entry("general.architecture", 8, text("llama"))


@pytest.mark.parametrize(
    "data",
    [
        gguf(0, 2**60, ARCHITECTURE),
        gguf(2**60, 1, ARCHITECTURE),
        gguf(2**60, 1, ARCHITECTURE + bytes(2**20)),
        gguf(0, 1, struct.pack("<Q", 2**63)),
        gguf(0, 1, entry("a", 8, struct.pack("<Q", 2**63))),
        *(gguf(0, 1, entry("a", 9, struct.pack("<IQ", kind, 2**61))) for kind in (0, 4, 8, 9, 12, 99)),
        gguf(0, 1, entry("a", 9, struct.pack("<IQ", 9, 1) * 100_000)),
        gguf(0, 1, entry("a", 9, struct.pack("<IQ", 9, 2**20) + bytes(2**20))),
        *(
            gguf(0, 2, ARCHITECTURE + entry("general.alignment", 10, struct.pack("<Q", value)))
            for value in (0, 1, 12, 2**63)
        ),
        gguf(1, 1, ARCHITECTURE + text("token_embd.weight") + struct.pack("<I2QIQ", 2, 2**63, 2**63, 0, 0)),
        gguf(1, 1, ARCHITECTURE + text("token_embd.weight") + struct.pack("<IIQ", 2**32 - 1, 0, 0)),
        gguf(1, 1, ARCHITECTURE + text("token_embd.weight") + struct.pack("<I2QIQ", 2, 8, 8, 0, 2**63)),
    ],
    ids=range(20),
)  # fmt: skip
def test_gguf_headers_that_lie(tmp_path, data):
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=r"m\.gguf"):
        load_model(tmp_path / "m.gguf")


def test_a_gguf_header_longer_than_any(tmp_path):
    """Half a gigabyte of zeros, of which none is on the disk."""
    with (tmp_path / "m.gguf").open("wb") as file:
        file.write(gguf(0, 2**40, entry("a", 8, struct.pack("<Q", 2**29))))
        file.truncate(2**29 + 2**20)
    with pytest.raises(WeightsError, match="longer than"):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": [1, 2, 3]}, "tokens must be an array of texts"),
        ({"tokens": ["<s>", "a", "a" * 10_000]}, "a token of 10000 characters"),
        ({"chat_template": ["x"]}, "chat_template must be a text"),
        ({"merges": [1]}, "merges must be an array of texts"),
        ({"token_types": [1.5, 1.5, 1.5]}, "token_type must be an array of integers"),
    ],
)
def test_gguf_vocabularies_of_other_types(tmp_path, fields, message):
    import gguf as package

    fields = {"tokens": ["<s>", "a", "aa"], "token_types": [3, 1, 1], "merges": ["a a"], **fields}
    writer = package.GGUFWriter(tmp_path / "v.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    names = {"tokens": "ggml.tokens", "token_types": "ggml.token_type", "merges": "ggml.merges"}
    for name, value in fields.items():
        writer.add_array(f"tokenizer.{names.get(name, name)}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match=message):
        load_tokenizer(tmp_path / "v.gguf")


def test_nothing_of_this_leaves_a_thread(tmp_path):
    before = threading.active_count()
    with pytest.raises(RootletError):
        load_model(tmp_path)
    assert threading.active_count() == before
