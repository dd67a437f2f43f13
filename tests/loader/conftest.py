"""One tiny random model of each kind, shared by all tests."""

from __future__ import annotations

import pytest
import torch

from .tiny import random_model


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small are slower on threads that wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def llama():
    return random_model("llama")


@pytest.fixture(scope="session")
def qwen2():
    return random_model("qwen2", tie_word_embeddings=True)
