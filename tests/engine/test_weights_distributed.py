"""Weights come from a trainer in another process: broadcast, or through shared memory; or nothing changes."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch
import torch.distributed as dist
from weights_trainer import Trainer, free_port

import rootlet
from rootlet.errors import (
    EngineClosedError,
    EngineThreadError,
    InvalidParameterError,
    TransferError,
    WeightsError,
)
from rootlet.transfer.group import WeightsGroup

from ..models.hf import build_hf

PARAMS = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
OPTIONS = {"dtype": "float32", "device": "cpu", "skip_tokenizer_init": True, "max_total_tokens": 512}
LOCAL = "127.0.0.1"
K_PROJ = "model.layers.1.self_attn.k_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two sets of weights of one model: the engine's at first, the trainers'."""
    made = []
    for seed in range(2):
        folder = tmp_path_factory.mktemp(f"weights{seed}")
        build_hf("Llama", seed, max_position_embeddings=256).save_pretrained(folder)
        made.append(str(folder))
    return made


@pytest.fixture(scope="module")
def trainers(folders):
    """Three trainers, of which tests may kill the last two; they load torch while the engine is built."""
    made = [Trainer(folders[1]) for _ in range(3)]
    yield made
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def trainer(trainers):
    return trainers[0]


@pytest.fixture(scope="module")
def engine(folders, trainers):
    with rootlet.Engine(folders[0], **OPTIONS) as made:
        yield made


@pytest.fixture(scope="module")
def expected(folders):
    """Of each set of weights: checksums, and what a fresh engine generates."""
    found = []
    for folder in folders:
        with rootlet.Engine(folder, **OPTIONS) as fresh:
            output = fresh.generate(input_ids=[1, 2, 3], sampling_params=PARAMS)
            found.append((fresh.weights_checksum(), output.token_ids))
    assert found[0] != found[1]
    return found


@pytest.fixture(autouse=True)
def at_first(engine, folders, expected):
    """Every test begins with the first weights and leaves no group and no request behind."""
    if engine.weights_checksum() != expected[0][0]:
        engine.update_weights(folders[0])
    yield
    assert not engine._groups._groups or engine.destroy_weights_update_group()[0]
    assert not engine._groups._groups
    assert engine.flush_cache()
    stats = engine.stats()
    assert stats.pages_free == stats.pages_total


def check_serves(engine, expectation):
    assert engine.weights_checksum() == expectation[0]
    assert engine.generate(input_ids=[1, 2, 3], sampling_params=PARAMS).token_ids == expectation[1]


def join(engine, trainer, how="join", timeout=30.0, **options):
    """Both in a group of two."""
    port = free_port()
    trainer.begin(how, port, **options)
    result = engine.init_weights_update_group(LOCAL, port, 1, 2, backend="gloo", timeout=timeout)
    assert result == (True, "Succeeded to initialize custom process group.")
    trainer.end()


# ---- broadcasts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["join", "join_by_torch"])
def test_all_weights_are_broadcast(engine, trainer, expected, how):
    """To an engine whose process has a default group of its own, from a trainer that has one too."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        own = dist.group.WORLD
        join(engine, trainer, how)
        names, dtypes, shapes = trainer("names")
        trainer.begin("send")
        result = engine.update_weights_from_distributed(
            names=names, dtypes=dtypes, shapes=shapes, version=None
        )
        assert result == (True, "Succeeded to update parameter online.")
        trainer.end()
        check_serves(engine, expected[1])
        before = engine.weights_version
        trainer.begin("send_value", 2.5, [64])
        result = engine.update_weights_from_distributed(NORM, torch.float32, (64,))
        assert result == (True, f"Succeeded to update parameter {NORM} online.")
        trainer.end()
        assert engine.weights_version == before + 1
        assert engine.get_weights_by_name(NORM) == [2.5] * 64
        trainer.begin("send")  # the later form, by position
        assert engine.update_weights_from_distributed(names, dtypes, shapes)[0]
        trainer.end()
        check_serves(engine, expected[1])
        assert dist.group.WORLD is own
        value = torch.ones(1)
        dist.all_reduce(value)
        assert value == 1
        left = engine.destroy_weights_update_group("weight_update_group")
        assert left == (True, "Succeeded to destroy custom process group.")
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_what_is_refused_is_received_all_the_same(engine, trainer, expected):
    join(engine, trainer)
    names, dtypes, shapes = trainer("names")
    wrong = {
        "leftover.*: bogus": ("bogus", "float32", [64]),
        "misshapen": (K_PROJ, "float32", [64]),
        "not finite": (NORM, "float32", [64]),
    }
    for reason, spec in wrong.items():
        trainer.begin("send_value", float("nan"), [64])
        done, message = engine.update_weights_from_distributed(*spec, check_finite=True)
        trainer.end()
        assert not done
        assert message.startswith("Failed to update parameter online: ")
        assert message.endswith("The old weights serve on.")
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(message)
    for changed in (names[:3] + ["bogus"] + names[4:], names[:3] + names[2:3] + names[4:]):
        trainer.begin("send")
        done, _ = engine.update_weights_from_distributed(names=changed, dtypes=dtypes, shapes=shapes)
        trainer.end()
        assert not done
    check_serves(engine, expected[0])
    trainer.begin("send")
    assert engine.update_weights_from_distributed(names=names, dtypes=dtypes, shapes=shapes)[0]
    trainer.end()
    check_serves(engine, expected[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": NORM, "dtype": "float33", "shape": [64]}, "must be a dtype and a shape"),
        ({"name": NORM, "dtype": None, "shape": [64]}, None),
        ({"name": NORM, "dtype": "float32", "shape": "wide"}, "must be a dtype and a shape"),
        ({"name": NORM, "dtype": "float32", "shape": [-64]}, "sizes above 0"),
        ({"name": 3, "dtype": "float32", "shape": [64]}, "has a name"),
        ({"names": [], "dtypes": [], "shapes": []}, "not empty"),
        ({"names": [NORM], "dtypes": ["float32", "float32"], "shapes": [[64]]}, "equally long .* 1, 2, 1"),
        ({"names": NORM, "dtypes": ["float32"], "shapes": [[64]]}, "must be lists"),
        ({"name": NORM, "dtype": "float32", "shape": [64], "group_name": "other"}, "'other' is not there"),
    ],
)  # fmt: skip
def test_what_says_no_size_is_not_waited_for(engine, trainer, options, message):
    if message is None:
        with pytest.raises(InvalidParameterError, match="all three"):
            engine.update_weights_from_distributed(**options)
        return
    done, said = engine.update_weights_from_distributed(**options)
    assert not done
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said)


def test_wrong_groups(engine, trainer):
    join(engine, trainer)
    given = {"master_address": LOCAL, "master_port": free_port(), "rank_offset": 1, "world_size": 2}
    given |= {"group_name": "other", "backend": "gloo", "timeout": 1.0}
    wrong = {
        "exists: call destroy_weights_update_group": {"group_name": "weight_update_group"},
        "rank 0 is the trainer": {"rank_offset": 0},
        "from 0 to 1 in a world of 2, got 2": {"rank_offset": 2},
        "world_size must be 2 or more": {"world_size": 1},
        "'nccl' is for GPUs": {"backend": "nccl"},
        "backend must be 'nccl' or 'gloo'": {"backend": "mpi"},
        "master_port must be": {"master_port": 0},
        "master_address must be": {"master_address": 3},
        "group_name must be": {"group_name": ""},
        "timeout must be seconds": {"timeout": -1},
        "within 1 seconds": {},  # nobody listens
    }
    for reason, change in wrong.items():
        done, message = engine.init_weights_update_group(**given | change)
        assert not done
        assert message.startswith("Failed to initialize custom process group: ")
        assert reason in message
    done, message = engine.destroy_weights_update_group("other")
    assert not done
    assert "'other' is not there ('weight_update_group')" in message


def test_a_world_of_another_size(engine, trainer):
    port = free_port()
    trainer.begin("join", port, world_size=3, timeout=3)
    done, message = engine.init_weights_update_group(LOCAL, port, 1, 2, backend="gloo", timeout=2)
    assert not done
    assert "all must give the same world_size" in message
    with pytest.raises(RuntimeError, match="TransferError: Not all of the 3 ranks"):
        trainer.end()


def test_the_engine_goes_on_until_the_first_tensor(engine, trainer, expected):
    join(engine, trainer)
    names, dtypes, shapes = trainer("names")
    results = []
    receiving = threading.Thread(
        target=lambda: results.append(engine.update_weights_from_distributed(names, dtypes, shapes))
    )
    receiving.start()
    for _ in range(3):
        check_serves(engine, expected[0])
    assert receiving.is_alive()
    handle = engine.submit(input_ids=[1, 2, 3], sampling_params=PARAMS | {"max_new_tokens": 100})
    reader = iter(handle)
    next(reader)
    trainer("send")
    receiving.join()
    assert results[0][0]
    output = handle.result()  # was waited for
    assert output.finish_reason["type"] == "length"
    assert {span.version for span in output.weights_versions} == {engine.weights_version - 1}
    check_serves(engine, expected[1])


# ---- trainers that die, or are late --------------------------------------------------------------------


def test_a_trainer_is_killed_in_the_middle(engine, trainers, expected):
    trainer = trainers[1]
    join(engine, trainer)
    names, dtypes, shapes = trainer("names")
    version = engine.weights_version
    trainer.begin("send_and_die", 5)
    done, message = engine.update_weights_from_distributed(names=names, dtypes=dtypes, shapes=shapes)
    assert not done
    assert "The connection to another rank has ended" in message
    assert engine.weights_version == version
    check_serves(engine, expected[0])
    done, message = engine.update_weights_from_distributed(names=names, dtypes=dtypes, shapes=shapes)
    assert not done
    assert "has been left" in message
    trainer.process.join()
    assert trainer.process.exitcode == -signal.SIGKILL


def test_a_trainer_that_sends_too_little(engine, trainer, expected):
    join(engine, trainer, timeout=1.0)
    names, dtypes, shapes = trainer("names")
    trainer.begin("send", names[:4])
    began = time.monotonic()
    done, _ = engine.update_weights_from_distributed(names=names, dtypes=dtypes, shapes=shapes)
    assert not done
    assert time.monotonic() - began < 10
    trainer.end()
    assert not engine.destroy_weights_update_group()[0]
    check_serves(engine, expected[0])


def test_ctrl_c_ends_the_wait(engine, trainer, expected):
    join(engine, trainer, timeout=2.0)

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        engine.update_weights_from_distributed(NORM, "float32", [64])
    timer.join()
    assert not engine.destroy_weights_update_group()[0]
    timer = threading.Timer(0.3, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        engine.init_weights_update_group(LOCAL, free_port(), 1, 2, backend="gloo", timeout=1.0)
    timer.join()
    check_serves(engine, expected[0])


def test_closing_ends_the_wait(folders, trainer):
    engine = rootlet.Engine(folders[0], **OPTIONS)
    join(engine, trainer, timeout=2.0)
    timer = threading.Timer(0.3, engine.close)
    timer.start()
    with pytest.raises(EngineClosedError):
        engine.update_weights_from_distributed(NORM, "float32", [64])
    timer.join()
    for call in (
        engine.destroy_weights_update_group,
        lambda: engine.init_weights_update_group(LOCAL, 1, 1, 2),
    ):
        with pytest.raises(EngineClosedError):
            call()


def test_on_the_engines_own_thread(engine):
    seen = []

    def update(handle):
        for call in (
            lambda: engine.init_weights_update_group(LOCAL, 1, 1, 2, backend="gloo"),
            lambda: engine.update_weights_from_distributed(NORM, "float32", [64]),
            lambda: engine.update_weights_from_ipc([]),
        ):
            try:
                call()
            except EngineThreadError as error:
                seen.append(error)

    handle = engine.submit(input_ids=[1, 2], sampling_params=PARAMS | {"max_new_tokens": 60})
    handle.add_done_callback(update)
    handle.result()
    engine.stats()  # behind the callback, on the same thread
    assert len(seen) == 3


def test_a_group_between_threads():
    """Both ranks in one process: nothing of a group is global."""
    port = free_port()
    values = torch.randn(3, 5, dtype=torch.bfloat16)
    got = torch.empty(5, 3, dtype=torch.bfloat16).t()
    scalar = torch.zeros((), dtype=torch.int64)

    def send():
        group = WeightsGroup(LOCAL, port, 0, 2, "g", "gloo", timeout=20)
        group.send([("values", values), torch.tensor(7)])
        group.close()

    sending = threading.Thread(target=send)
    sending.start()
    group = WeightsGroup(LOCAL, port, 1, 2, "g", "gloo", timeout=20)
    group.broadcast(got)
    group.broadcast(scalar)
    sending.join()
    assert torch.equal(got, values)
    assert scalar == 7
    group.close()
    group.close()
    with pytest.raises(TransferError, match="was closed"):
        group.broadcast(scalar)
    assert group.is_closed


# ---- shared memory -------------------------------------------------------------------------------------


def test_weights_come_in_one_buffer(engine, trainer, expected):
    bucket = trainer("buckets")
    done = engine.update_weights_from_ipc([bucket], version=engine.weights_version + 5)
    assert done.version == engine.weights_version
    assert done.tensors == len(bucket[1])
    check_serves(engine, expected[1])


@pytest.mark.parametrize("staging", ["auto", "host"])
def test_one_buffer_is_used_again_and_again(engine, trainer, expected, staging):
    count = 0
    with engine.weight_update(staging=staging) as update:
        bucket = trainer("buckets", size=30_000)
        while bucket is not None:
            update.add_ipc(*bucket)
            count += 1
            bucket = trainer("next_bucket")
    assert count > 5
    check_serves(engine, expected[1])


def test_a_trainer_is_killed_between_buckets(engine, trainers, expected):
    trainer = trainers[2]

    def attempt():
        with engine.weight_update() as update:
            update.add_ipc(*trainer("buckets", size=30_000))
            bucket = trainer("next_bucket")
            trainer.begin("die")
            trainer.process.join()
            update.add_ipc(*bucket)

    with pytest.raises(WeightsError, match=r"cannot be opened.*must be alive"):
        attempt()
    check_serves(engine, expected[0])


def test_a_tensor_is_its_own_handle(engine):
    [(buffer, entries)] = rootlet.weights_buckets([(NORM, torch.full([64], 0.5))])
    engine.update_weights_from_ipc(
        [
            (buffer, entries),
        ],
        partial=True,
    )
    assert engine.get_weights_by_name(NORM) == [0.5] * 64
    buffer.zero_()
    engine.update_weights_from_ipc(
        [(rootlet.ipc_handle(buffer), entries)], partial=True
    )  # fine in host memory
    assert engine.get_weights_by_name(NORM) == [0.0] * 64


def test_buckets_hold_every_tensor_once():
    tensors = {
        "a": torch.randn(3, 3),
        "b": torch.randn(5).bfloat16(),
        "scalar": torch.tensor(4.0),
        "large": torch.randn(300),
        "strided": torch.randn(4, 6).t(),
    }
    seen = {}
    for buffer, entries in rootlet.weights_buckets(tensors.items(), size=600):
        for name, tensor in rootlet.engine.weights.buckets.read_bucket(buffer, entries):
            seen[name] = tensor.clone()
    assert seen.keys() == tensors.keys()
    assert all(torch.equal(seen[name], tensors[name]) for name in tensors)
    assert list(rootlet.weights_buckets([])) == []
    with pytest.raises(InvalidParameterError, match="size must be bytes"):
        next(rootlet.weights_buckets(tensors.items(), size=0))
