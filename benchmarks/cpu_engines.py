"""The engines that ``cpu.py`` compares, behind one interface: token ids in, so many greedy tokens out.

Each runs the way its own users are told to run it; what that means is the docstring of its class.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import rootlet

Prompt = list[int]


class Contestant(Protocol):
    """One engine, loaded. ``batch_size`` is that of its static batches, None if it batches continuously."""

    name: str
    batch_size: int | None

    def ready(self) -> AbstractContextManager:
        """The span of one run; what an engine does on entering (warming up, too) is not timed."""

    def generate(self, prompts: list[Prompt], num_outputs: list[int], num_shared: int = 0) -> list[list[int]]:
        """Return ``num_outputs[i]`` greedy tokens after ``prompts[i]``, EOS ignored.

        The first ``num_shared`` tokens of all prompts are the same; whoever can only use that when
        told so may.
        """

    def close(self) -> None:
        """Free the model."""


class Rootlet:
    """``Engine.generate`` over the whole list: continuous batching, chunked prefill, radix cache on."""

    name = "rootlet bf16"
    batch_size = None

    def __init__(self, model: Path, **options: Any) -> None:
        self._path = str(model)
        self._options = {"dtype": "bfloat16", "max_total_tokens": 64 * 1024} | options

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Build the engine for this run; its thread and that thread's workers end with it."""
        with rootlet.Engine(self._path, **self._options) as self._engine:
            self.generate([[5] * 64], [4])
            yield

    def generate(self, prompts: list[Prompt], num_outputs: list[int], num_shared: int = 0) -> list[list[int]]:
        del num_shared  # the radix cache finds it
        params = [{"temperature": 0, "ignore_eos": True, "max_new_tokens": n} for n in num_outputs]
        return [
            list(out.token_ids) for out in self._engine.generate(input_ids=prompts, sampling_params=params)
        ]

    def close(self) -> None:
        """Nothing is left of the last run."""


class Transformers:
    """``model.generate`` in static batches of 16, left padding, batches in order of prompt length.

    Each batch runs until its longest output is there, which is what static batching means; only
    the tokens that were asked for count. Prompt lengths are known beforehand, so sorting by them
    is fair and saves padding; output lengths are not.
    """

    def __init__(self, name: str, model: PreTrainedModel, batch_size: int = 16) -> None:
        self.name = name
        self.batch_size = batch_size
        self._model = model.eval()
        self._model.generation_config.eos_token_id = None  # run to the asked length

    def ready(self) -> AbstractContextManager:
        return nullcontext()

    @staticmethod
    def load(model: Path) -> PreTrainedModel:
        """Load a GGUF file in fp32, the way transformers' users do (it needs the package accelerate)."""
        return AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32)

    def generate(self, prompts: list[Prompt], num_outputs: list[int], num_shared: int = 0) -> list[list[int]]:
        del num_shared  # no way to use it
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        outputs: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            width = max(len(prompts[i]) for i in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask[row, width - len(prompts[i]) :] = 1
            longest = max(num_outputs[i] for i in batch)
            with torch.inference_mode():
                out = self._model.generate(
                    ids, attention_mask=mask, max_new_tokens=longest, do_sample=False, pad_token_id=0
                )
            for row, i in enumerate(batch):
                outputs[i] = out[row, width : width + num_outputs[i]].tolist()
        return outputs

    def close(self) -> None:
        del self._model


class LlamaCpp:
    """llama.cpp through llama-cpp-python's low-level interface, with ``slots`` sequences at once.

    What llama.cpp's own server does with ``--parallel``: a free slot takes the next prompt at once,
    and prompts and running sequences share a batch. A shared prefix is computed once and copied to
    each slot (``llama_memory_seq_cp``), which its users have to ask for.
    """

    batch_size = None

    def __init__(self, name: str, gguf: Path, *, slots: int = 16, slot_tokens: int = 768) -> None:
        import llama_cpp

        self.name = name
        self._lib = lib = llama_cpp.llama_cpp
        self._slots = slots
        self._max_batch = 2048
        self._quiet = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self._quiet, ctypes.c_void_p(0))
        self._model = lib.llama_model_load_from_file(str(gguf).encode(), lib.llama_model_default_params())
        options = lib.llama_context_default_params()
        options.n_ctx = (slots + 1) * slot_tokens
        options.n_seq_max = slots + 1  # the last one holds the shared prefix
        options.n_batch = self._max_batch
        options.n_threads = options.n_threads_batch = torch.get_num_threads()
        self._context = lib.llama_init_from_model(self._model, options)
        self._memory = lib.llama_get_memory(self._context)
        self._num_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._batch = lib.llama_batch_init(self._max_batch, 0, 1)

    def ready(self) -> AbstractContextManager:
        return nullcontext()

    def generate(self, prompts: list[Prompt], num_outputs: list[int], num_shared: int = 0) -> list[list[int]]:
        self._lib.llama_memory_clear(self._memory, True)
        if num_shared:
            self._decode(
                [(token, at, self._slots, False) for at, token in enumerate(prompts[0][:num_shared])]
            )
        outputs: list[list[int]] = [[] for _ in prompts]
        waiting = deque(range(len(prompts)))
        running: dict[int, int] = {}  # slot -> prompt
        while waiting or running:
            entries = [
                (outputs[i][-1], len(prompts[i]) + len(outputs[i]) - 1, slot, True)
                for slot, i in running.items()
            ]
            for slot in range(self._slots):
                fits = waiting and len(entries) + len(prompts[waiting[0]]) - num_shared <= self._max_batch
                if slot not in running and fits:
                    running[slot] = i = waiting.popleft()
                    entries += self._start(slot, prompts[i], num_shared)
            for slot, token in self._decode(entries).items():
                i = running[slot]
                outputs[i].append(token)
                if len(outputs[i]) == num_outputs[i]:
                    del running[slot]
        return outputs

    def _start(self, slot: int, prompt: Prompt, num_shared: int) -> list[tuple[int, int, int, bool]]:
        self._lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
        if num_shared:
            self._lib.llama_memory_seq_cp(self._memory, self._slots, slot, -1, -1)
        return [(prompt[at], at, slot, at == len(prompt) - 1) for at in range(num_shared, len(prompt))]

    def _decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> dict[int, int]:
        """Compute a batch of (token, position, slot, wants logits); return the best next token by slot."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for at, (token, position, slot, wanted) in enumerate(entries):
            batch.token[at] = token
            batch.pos[at] = position
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = slot
            batch.logits[at] = wanted
        status = self._lib.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}.")
        best = {}
        for at, (_, _, slot, wanted) in enumerate(entries):
            if wanted:
                logits = self._lib.llama_get_logits_ith(self._context, at)
                best[slot] = int(np.ctypeslib.as_array(logits, (self._num_vocab,)).argmax())
        return best

    def close(self) -> None:
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)


def llama_cpp_available() -> bool:
    """Whether the optional llama-cpp-python is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


def convert_gguf(source: Path, target: Path, kind: str) -> None:
    """Write the model of a GGUF file again with all matrices as ``kind`` ("F16" or "BF16"), vectors as F32.

    The values are those of the source dequantised, so every engine multiplies the same numbers.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    quantization = gguf.GGMLQuantizationType[kind]
    arch = reader.get_field(gguf.Keys.General.ARCHITECTURE).contents()
    writer = gguf.GGUFWriter(target, arch)
    for field in reader.fields.values():
        if field.name != gguf.Keys.General.ARCHITECTURE and not field.name.startswith("GGUF."):
            _copy_field(writer, field, file_type=gguf.LlamaFileType[f"MOSTLY_{kind}"])
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            data = gguf.quants.quantize(values, quantization)
            writer.add_tensor(tensor.name, data, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_field(writer: Any, field: Any, *, file_type: int) -> None:
    import gguf

    value = int(file_type) if field.name == gguf.Keys.General.FILE_TYPE else field.contents()
    kind = field.types[0]
    sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(field.name, value, kind, sub_type=sub_type)
