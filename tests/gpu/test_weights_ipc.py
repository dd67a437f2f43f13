"""Weights from a trainer in another process, on the same GPU by CUDA IPC and on another one by NCCL."""

from __future__ import annotations

import signal

import pytest
import torch
from weights_trainer import Trainer, free_port

import rootlet
from rootlet.errors import WeightsError

from ..models.hf import build_hf
from .tiny import build, generate, random_prompt

PROMPTS = [random_prompt(length, length) for length in (3, 40, 200)]
LENGTHS = [20] * 3
NORM = "model.norm.weight"
OTHER = "cuda:1"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two sets of weights of one model: the engine's at first, the trainers'."""
    made = []
    for seed in range(2):
        folder = tmp_path_factory.mktemp(f"weights{seed}")
        build_hf("Llama", seed, max_position_embeddings=1024).save_pretrained(folder)
        made.append(str(folder))
    return made


@pytest.fixture(scope="module")
def expected(folders):
    """Of each set of weights: checksums, and what a fresh engine generates."""
    found = []
    for folder in folders:
        with build(folder) as fresh:
            found.append((fresh.weights_checksum(), generate(fresh, PROMPTS, LENGTHS)))
    return found


@pytest.fixture(scope="module")
def engine(folders):
    with build(folders[0]) as made:
        yield made


@pytest.fixture(scope="module")
def shared_trainer(folders):
    made = Trainer(folders[1])
    yield made
    made.close()


@pytest.fixture
def mortal_trainer(folders):
    """One that does not outlive the test."""
    made = Trainer(folders[1])
    yield made
    made.close()


@pytest.fixture(autouse=True)
def at_first(engine, folders, expected):
    """Every test begins with the first weights, which recorded steps have met."""
    engine.update_weights(folders[0])
    check_serves(engine, expected[0])
    yield
    assert not engine._groups._groups or engine.destroy_weights_update_group()[0]


def check_serves(engine, expectation):
    assert engine.weights_checksum() == expectation[0]
    assert generate(engine, PROMPTS, LENGTHS) == expectation[1]


# ---- CUDA IPC ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("staging", ["auto", "host"])
@pytest.mark.parametrize("pickled", [False, True])
def test_one_buffer_is_used_again_and_again(engine, shared_trainer, expected, pickled, staging):
    """The trainer overwrites it as soon as the engine has said that it is done."""
    count = 0
    with engine.weight_update(staging=staging) as update:
        bucket = shared_trainer("buckets", size=30_000, device="cuda", pickled=pickled)
        while bucket is not None:
            update.add_ipc(*bucket)
            count += 1
            bucket = shared_trainer("next_bucket", pickled=pickled)
    assert count > 5
    check_serves(engine, expected[1])


def test_all_weights_in_one_call(engine, shared_trainer, expected):
    for _ in range(3):
        engine.update_weights_from_ipc([shared_trainer("buckets", device="cuda")])
    check_serves(engine, expected[1])


def test_shared_memory_of_the_host(engine, shared_trainer, expected):
    engine.update_weights_from_ipc([shared_trainer("buckets")])
    check_serves(engine, expected[1])


def test_a_buffer_of_this_process(engine, expected):
    [(buffer, entries)] = rootlet.weights_buckets([(NORM, torch.ones(64, device="cuda"))])
    with pytest.raises(WeightsError, match="this process's own"):
        engine.update_weights_from_ipc([(rootlet.ipc_handle(buffer), entries)], partial=True)
    check_serves(engine, expected[0])


def test_a_gpu_that_is_not_here(engine, shared_trainer, expected):
    handle, entries = shared_trainer("buckets", device="cuda")
    with pytest.raises(WeightsError, match="CUDA_VISIBLE_DEVICES"):
        engine.update_weights_from_ipc([(handle | {"uuid": "GPU-0"}, entries)])
    with pytest.raises(WeightsError, match="cannot be opened"):
        engine.update_weights_from_ipc([(handle | {"memory": b"\0" * len(handle["memory"])}, entries)])
    check_serves(engine, expected[0])


def test_a_trainer_is_killed_between_buckets(engine, mortal_trainer, expected):
    def attempt():
        with engine.weight_update() as update:
            update.add_ipc(*mortal_trainer("buckets", size=30_000, device="cuda"))
            bucket = mortal_trainer("next_bucket")
            mortal_trainer.begin("die")
            mortal_trainer.process.join()
            update.add_ipc(*bucket)

    with pytest.raises(WeightsError, match="cannot be opened"):
        attempt()
    check_serves(engine, expected[0])


# ---- broadcasts ----------------------------------------------------------------------------------------


def join(engine, trainer, how="join", backend="nccl", timeout=30.0, **options):
    port = free_port()
    trainer.begin(how, port, backend=backend, **options)
    done, message = engine.init_weights_update_group(
        "127.0.0.1", port, 1, 2, backend=backend, timeout=timeout
    )
    assert done, message
    trainer.end()


def receive(engine, trainer, *command, **options):
    """What the engine says of all weights, sent by this command."""
    names, dtypes, shapes = trainer("names")
    trainer.begin(*command, **options)
    return engine.update_weights_from_distributed(names=names, dtypes=dtypes, shapes=shapes)


def test_through_the_host(engine, shared_trainer, expected):
    join(engine, shared_trainer, backend="gloo")
    done, message = receive(engine, shared_trainer, "send", device="cuda")
    assert done, message
    shared_trainer.end()
    check_serves(engine, expected[1])


def test_nccl_between_two_processes_on_one_gpu(engine, mortal_trainer, expected):
    """NCCL refuses it, and the message says what to do instead."""
    join(engine, mortal_trainer, timeout=20.0)
    done, message = receive(engine, mortal_trainer, "send", device="cuda")
    assert not done
    assert "update_weights_from_ipc" in message
    check_serves(engine, expected[0])


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@two_gpus
@pytest.mark.parametrize("how", ["join", "join_by_torch"])
def test_nccl(engine, mortal_trainer, expected, how):
    join(engine, mortal_trainer, how, **({"device": OTHER} if how == "join" else {}))
    for _ in range(2):
        done, message = receive(engine, mortal_trainer, "send", device=OTHER)
        assert done, message
        mortal_trainer.end()
    check_serves(engine, expected[1])


@two_gpus
@pytest.mark.parametrize("how", ["join", "join_by_torch"])
def test_a_trainer_is_killed_in_the_middle(engine, mortal_trainer, expected, how):
    join(engine, mortal_trainer, how, timeout=5.0, **({"device": OTHER} if how == "join" else {}))
    done, message = receive(engine, mortal_trainer, "send_and_die", 5, device=OTHER)
    assert not done, message
    mortal_trainer.process.join()
    assert mortal_trainer.process.exitcode == -signal.SIGKILL
    check_serves(engine, expected[0])


@two_gpus
def test_a_trainer_that_sends_nothing(engine, mortal_trainer, expected):
    join(engine, mortal_trainer, timeout=3.0, device=OTHER)
    done, message = engine.update_weights_from_distributed(NORM, "float32", [64])
    assert not done, message
    check_serves(engine, expected[0])
    join(engine, mortal_trainer, timeout=3.0, device=OTHER)
    done, message = receive(engine, mortal_trainer, "send", ["model.embed_tokens.weight"], device=OTHER)
    assert not done
    assert "was not broadcast" in message
    check_serves(engine, expected[0])
