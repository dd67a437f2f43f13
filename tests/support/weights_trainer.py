"""A trainer in a process of its own, told what to do through a pipe: it has weights and sends them.

It imports torch and what Rootlet has for trainers, no engine.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import pickle
import signal
import socket
from contextlib import closing
from typing import Any


class Trainer:
    """The other end of the pipe. Calls of any other name are commands: see :class:`Commands`."""

    def __init__(self, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, folder), daemon=True)
        self.process.start()
        theirs.close()

    def begin(self, command: str, *args: Any, **options: Any) -> None:
        """Have something done; :meth:`end` waits for it."""
        self._pipe.send((command, args, options))

    def end(self) -> Any:
        """What the command returned; RuntimeError with what it raised."""
        assert self._pipe.poll(60), "the trainer does not answer"
        done, value = self._pipe.recv()
        if not done:
            raise RuntimeError(value)
        return value

    def __call__(self, command: str, *args: Any, **options: Any) -> Any:
        """Begin and end."""
        self.begin(command, *args, **options)
        return self.end()

    def close(self) -> None:
        """End the process, whatever it does."""
        self._pipe.close()
        self.process.kill()
        self.process.join()


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def serve(pipe: Any, folder: str) -> None:
    """Run commands until the pipe ends."""
    commands = Commands(folder)
    while True:
        try:
            command, args, options = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            answer = True, getattr(commands, command)(*args, **options)
        except Exception as error:
            answer = False, f"{type(error).__name__}: {error}"
        pipe.send(answer)


class Commands:
    """What a trainer can be told to do."""

    def __init__(self, folder: str) -> None:
        import torch
        from safetensors.torch import load_file

        torch.set_num_threads(1)
        self.state = load_file(f"{folder}/model.safetensors")
        self.held = None
        self.group: Any = None
        self.broadcast: Any = None

    def names(self):
        """Names, dtypes and shapes, in the order in which ``send`` sends."""
        state = self.state
        dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in state.values()]
        return list(state), dtypes, [list(tensor.shape) for tensor in state.values()]

    def join(self, port, name="weight_update_group", backend="gloo", world_size=2, timeout=30, device=None):
        """Rank 0, by our class."""
        import sys

        from rootlet import WeightsGroup

        self.group = WeightsGroup(
            "127.0.0.1", port, 0, world_size, name, backend, timeout=timeout, device=device
        )
        assert not [name for name in sys.modules if name.startswith(("rootlet.engine", "transformers"))]
        self.broadcast = self.group.broadcast

    def join_by_torch(self, port, name="weight_update_group", backend="gloo", world_size=2):
        """Rank 0 as in other engines' examples, beside a default group of the trainer's own."""
        import torch.distributed as dist
        from torch.distributed import distributed_c10d as c10d

        limit = datetime.timedelta(seconds=30)
        if not dist.is_initialized():
            own = dist.HashStore()
            dist.init_process_group("gloo", store=own, rank=0, world_size=1)
        url = f"tcp://127.0.0.1:{port}"
        store, rank, size = next(iter(dist.rendezvous(url, 0, world_size, timeout=limit)))
        store.set_timeout(limit)
        store = c10d.PrefixStore(name, store)
        group, _ = c10d._new_process_group_helper(
            size, rank, [], c10d.Backend(backend), store, group_name=name, timeout=limit
        )
        c10d._world.pg_group_ranks[group] = {one: one for one in range(size)}
        self.broadcast = lambda tensor: dist.broadcast(tensor, src=0, group=group)

    def send(self, names=None, device="cpu"):
        """Broadcast some weights of ours, one after the other."""
        for name in self.state if names is None else names:
            self.broadcast(self.state[name].to(device))

    def send_value(self, value, shape):
        """Broadcast one tensor of fp32."""
        import torch

        self.broadcast(torch.full(shape, value))

    def send_and_die(self, count, device="cpu"):
        """Broadcast so many weights, and end as by ``kill -9``."""
        self.send(list(self.state)[:count], device)
        os.kill(os.getpid(), signal.SIGKILL)

    def leave(self):
        """Leave the group."""
        self.group.close()

    def buckets(self, size=1 << 20, device="cpu", pickled=False):
        """Begin to lay weights into buckets: the first bucket's handle and entries."""
        from rootlet import weights_buckets

        self.held = weights_buckets(self.state.items(), size, device)
        return self.next_bucket(pickled)

    def next_bucket(self, pickled=False):
        """Handle and entries of the next bucket, which overwrites the one before; None behind the last."""
        from torch.multiprocessing.reductions import reduce_tensor

        from rootlet import ipc_handle

        found = next(self.held, None)
        if found is None:
            return None
        self.buffer, entries = found
        return (pickle.dumps(reduce_tensor(self.buffer)) if pickled else ipc_handle(self.buffer)), entries

    def die(self):
        """End as by ``kill -9``."""
        os.kill(os.getpid(), signal.SIGKILL)
