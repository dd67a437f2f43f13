"""An engine whose weights can be replaced and whose memory can be lent: what RL loops call."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .base import BuiltEngine
from .host.side_thread import run_beside
from .weights import documented, reading
from .weights.distributed import Groups
from .weights.options import UpdateOptions
from .weights.pauses import Pauses
from .weights.sharing import Sharing
from .weights.updates import Updates

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from typing_extensions import Unpack

    from .core import EngineCore, OnRunning
    from .memory import Keep, MemoryReport, Tags
    from .options import EngineOptions
    from .schedule.versions import Label
    from .weights.options import Staging, WeightUpdate
    from .weights.updates import UpdateBlock

T = TypeVar("T")


def _all_of(*checks: Callable[[], None]) -> Callable[[], None]:
    """All of them in turn. It is no method of the engine, which would not end with ``del`` then."""

    def check() -> None:
        for one in checks:
            one()

    return check


class UpdatableEngine(BuiltEngine):
    """What :class:`~rootlet.Engine` is but for generating."""

    def __init__(self, model_path: str | os.PathLike[str], **options: Unpack[EngineOptions]) -> None:
        super().__init__(model_path, **options)
        turn = threading.Lock()
        self._sharing = Sharing(self._loop, self._memory, turn)
        self._updates = Updates(
            self._loop, self._memory, self._model_config, self._resolved.dtype, self._sharing, turn
        )
        self._calls.before_start = _all_of(self._memory.check, self._sharing.check)
        self._groups = Groups(self._updates, self._resolved.device)
        self._pauses = Pauses(self._loop)

    # ---- new weights -------------------------------------------------------------------------------

    def update_weights(
        self,
        source: Any,
        *,
        version: Label | None = None,
        partial: bool = False,
        expect: Mapping[str, Any] | None = None,
        on_running: OnRunning = "abort",
        flush_cache: bool = True,
        staging: Staging = "auto",
        check_finite: bool = False,
    ) -> WeightUpdate:
        """Replace the weights by others of the same shapes: all together, or, if anything is wrong, none.

        Args:
            source: names as a Hugging Face checkpoint has them, with tensors of any float dtype on any
                device: a mapping (``state_dict()``), a torch module, the path of a checkpoint, pairs of name
                and tensor, or an object with ``metadata()`` (name, dtype and shape of each) that is iterated.
                What is iterated is read once, in the calling thread, and each tensor only until the next is
                asked for; it is kept aside first, so that nothing has changed if it raises in the middle.
            version: what outputs call the new weights; integers must rise. Default: one more.
            partial: names that do not come keep their values.
            expect: what will come, ``{name: (dtype, shape)}``: checked before the first tensor is read.
            on_running: what becomes of requests. "abort" ends them with what they have, those that wait too;
                "finish" lets those that have begun run to their ends first; "recompute" keeps their tokens
                and computes their keys and values again; "keep" keeps these as well (needs
                ``flush_cache=False``). In other engines' words: vLLM says abort, wait, keep; SGLang abort,
                retract, in_place. Of what crosses an update, outputs say in ``weights_versions`` which
                version drew which token.
            flush_cache: drop the prefix cache. What old weights computed is never found by new requests
                either way; False merely leaves it to be evicted.
            staging: where tensors wait that do not stay: "kv" (the memory of the KV pool, whose contents
                are then dropped first), "host", or "auto": the pool if ``flush_cache``, else the host.
            check_finite: refuse NaN and infinities, which takes a pass over the tensors.

        Returns a :class:`~rootlet.WeightUpdate` when the copies are done; the source may then be overwritten.
        On a GPU it waits for what the calling thread's current stream has in line.

        Raises WeightsError for anything that does not fit, NumericalError, InvalidParameterError for an
        option, and whatever the source raises: the old weights serve on, to the bit.
        """
        options = UpdateOptions(version, partial, on_running, flush_cache, staging, check_finite)
        return self._updates.update(source, expect, options)

    async def async_update_weights(self, source: Any, **options: Any) -> WeightUpdate:
        """:meth:`update_weights` for a running event loop; the source is read on a thread of its own."""
        return await run_beside(lambda: self.update_weights(source, **options))

    def weight_update(
        self,
        *,
        version: Label | None = None,
        partial: bool = False,
        expect: Mapping[str, Any] | None = None,
        on_running: OnRunning = "abort",
        flush_cache: bool = True,
        staging: Staging = "auto",
        check_finite: bool = False,
    ) -> AbstractContextManager[UpdateBlock]:
        """A block in which weights arrive in pieces; they are replaced at its end, unless it raises.

        ``with engine.weight_update(version=3) as update:`` then ``update.add(name, tensor)``,
        ``update.add_bucket(buffer, entries)`` or ``update.add_ipc(handle, entries)``, and ``update.result``
        after it. Arguments as in :meth:`update_weights`. Nothing is generated within the block, unless
        ``staging="host"``.
        """
        options = UpdateOptions(version, partial, on_running, flush_cache, staging, check_finite)
        return self._updates.block(expect, options)

    def update_weights_from_tensor(
        self,
        named_tensors: Sequence[tuple[str, torch.Tensor]],
        load_format: str | None = None,
        flush_cache: bool = True,
    ) -> tuple[bool, str]:
        """The documented form of :meth:`update_weights` with ``partial=True``: (True, "Success").

        ``load_format`` must be None or "direct"; names are always those of a checkpoint. Raises as there.
        """
        return documented.from_tensor(self._updates, named_tensors, load_format, flush_cache=flush_cache)

    def update_weights_from_disk(
        self, model_path: str | os.PathLike[str], load_format: str | None = None
    ) -> tuple[bool, str]:
        """The documented form for a checkpoint; waits for running requests. (success, message)."""
        return documented.from_disk(self._updates, model_path, load_format)

    # ---- weights that a trainer shares -------------------------------------------------------------

    def share_weights(
        self,
        module: torch.nn.Module,
        *,
        version: Label | None = None,
        on_running: OnRunning = "abort",
    ) -> WeightUpdate:
        """Let ``module``, the same model in transformers, be trained in the engine's own memory.

        The engine takes the module's values; then the module's parameters become views of the engine's
        memory, so that a step of the optimizer changes both and nothing is ever copied. Parameters, optimizer
        and ``save_pretrained`` work as before, results are the same to the bit. After each step call
        :meth:`weights_changed`, and do not generate while one may run. Closing the engine leaves the module
        its values. Arguments as in :meth:`update_weights`.

        Raises WeightsError, with nothing changed, where layouts do not allow it: another dtype or device,
        wrapped modules, and weights that the engine keeps in a layout of its own, as on most CPUs.
        """
        return self._sharing.begin(module, UpdateOptions(version, on_running=on_running))

    def weights_changed(
        self, version: Label | None = None, *, on_running: OnRunning = "abort", flush_cache: bool = True
    ) -> WeightUpdate:
        """The trainer has changed the weights that it shares: from here on they have the next version.

        No byte is moved. Raises WeightsError if nothing is shared, or a parameter has left the engine's
        memory, which every call of the engine looks for too.
        """
        options = UpdateOptions(version, on_running=on_running, flush_cache=flush_cache)
        return self._sharing.changed(options)

    def unshare_weights(self) -> None:
        """Give the module memory of its own, with the same values. Idempotent."""
        self._sharing.end()

    @property
    def shares_weights(self) -> bool:
        """Whether a module shares the weights."""
        return self._sharing.is_on

    # ---- new weights from other processes ----------------------------------------------------------

    def init_weights_update_group(
        self,
        master_address: str,
        master_port: int,
        rank_offset: int,
        world_size: int,
        group_name: str = "weight_update_group",
        backend: str = "nccl",
        timeout: float = 300.0,
    ) -> tuple[bool, str]:
        """Join a group of processes whose rank 0, a trainer, broadcasts weights. Waits until all have come.

        Args:
            master_address, master_port: where rank 0 listens: it makes a :class:`~rootlet.WeightsGroup`, or
                what other engines' examples call ``init_custom_process_group``, of the same arguments.
            rank_offset: this engine's rank, 1 or more.
            world_size: the trainer and all engines.
            group_name: what :meth:`update_weights_from_distributed` calls it; an engine may be in several.
            backend: "nccl", between GPUs, a trainer's and each engine's own; or "gloo", through host memory.
            timeout: seconds to wait for the ranks, and later for each tensor.

        Returns (True, "Succeeded to initialize custom process group."), else False and why: the name is
        taken, ranks did not come, an argument is wrong. torch.distributed's own groups, the default one
        above all, are neither needed nor touched, and none of its environment variables are read.
        """
        return documented.join(
            self._groups,
            rank_offset,
            master_address=master_address,
            master_port=master_port,
            world_size=world_size,
            name=group_name,
            backend=backend,
            timeout=timeout,
        )

    def destroy_weights_update_group(self, group_name: str = "weight_update_group") -> tuple[bool, str]:
        """Leave a group, as :meth:`close` does. False and why if there is none of that name."""
        return documented.leave(self._groups, group_name)

    def update_weights_from_distributed(
        self,
        name: Any = None,
        dtype: Any = None,
        shape: Any = None,
        group_name: str = "weight_update_group",
        flush_cache: bool = True,
        *,
        names: Sequence[str] | None = None,
        dtypes: Sequence[torch.dtype | str] | None = None,
        shapes: Sequence[Sequence[int]] | None = None,
        version: Label | None = None,
        on_running: OnRunning = "finish",
        staging: Staging = "auto",
        check_finite: bool = False,
    ) -> tuple[bool, str]:
        """Replace some weights by what rank 0 of a group broadcasts: all of those named, or none.

        One weight by ``name`` (of a checkpoint), ``dtype`` (or its name) and ``shape``, or several by lists:
        ``names``, ``dtypes`` and ``shapes``, which may stand in the places of the first three too. Rank 0
        broadcasts the whole tensors in this order. Weights that are not named keep their values. Other
        arguments as in :meth:`update_weights`; by default running requests are waited for.

        The tensors are received in the calling thread, into a stage; the engine goes on until the first has
        come. Ctrl-C ends the wait, and the group.

        Returns (True, "Succeeded to update parameter NAME online."), or False and why, with nothing changed:
        an unknown group, dtype or name, a shape that does not fit, a trainer that is gone, or a tensor that
        did not come within the group's timeout. What is refused is received all the same where dtypes and
        shapes say how much, so that the trainer is not left waiting; a group in which something did not come
        has been left. Raises InvalidParameterError for the other options.
        """
        options = UpdateOptions(version, True, on_running, flush_cache, staging, check_finite)
        single, several = (name, dtype, shape), (names, dtypes, shapes)
        return documented.from_distributed(self._groups, single, several, group_name, options)

    def update_weights_from_ipc(
        self,
        buckets: Iterable[tuple[Any, Iterable[Mapping[str, Any]]]],
        *,
        version: Label | None = None,
        partial: bool = False,
        expect: Mapping[str, Any] | None = None,
        on_running: OnRunning = "abort",
        flush_cache: bool = True,
        staging: Staging = "auto",
        check_finite: bool = False,
    ) -> WeightUpdate:
        """:meth:`update_weights` from buffers of a trainer in another process on this machine.

        ``buckets``: pairs of a buffer's handle and the entries that say what lies in it. In the trainer
        ``rootlet.weights_buckets(model.state_dict().items())`` gives buffers and entries, and
        ``rootlet.ipc_handle(buffer)`` a handle; how they come here is up to you (a pipe, a queue, HTTP).
        Buffers on a GPU of this machine are opened by CUDA IPC, those in host memory as shared memory. For
        one buffer that is used again and again open a :meth:`weight_update` block and call ``add_ipc``: the
        buffer is free as soon as that returns.

        Handles are read field by field; pickled ones cannot run code. Raises as :meth:`update_weights`, and
        WeightsError for a buffer that cannot be opened here: this process's own on a GPU, one on a GPU that
        is not seen here, or of a process that is gone.
        """
        options = UpdateOptions(version, partial, on_running, flush_cache, staging, check_finite)
        return self._updates.update_from_ipc(buckets, expect, options)

    # ---- reading -----------------------------------------------------------------------------------

    @property
    def weights_version(self) -> Label:
        """What the present weights are called: 0 at first."""
        return self._loop.call(lambda core: core.weights_version)

    def weight(self, name: str) -> torch.Tensor | None:
        """A copy of one weight, whole, by its checkpoint name; None if there is none."""
        return self._read(lambda core: reading.read_weight(core, name))

    def get_weights_by_name(self, name: str, truncate_size: int = 100) -> list | None:
        """The first ``truncate_size`` rows of a weight as lists of floats; None for an unknown name."""
        return self._read(lambda core: reading.first_rows(core, name, truncate_size))

    def weights_checksum(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """SHA-256 of each weight's bytes, by name: equal in engines with equal weights of one dtype.

        ``names``: default all; of tied weights one. Raises WeightsError for an unknown name.
        """
        return self._read(lambda core: reading.checksum(core, names))

    def _read(self, read: Callable[[EngineCore], T]) -> T:
        """``read(core)``, of weights that are there."""

        def run(core: EngineCore) -> T:
            self._memory.check_weights()
            return read(core)

        return self._loop.call(run)

    # ---- memory ------------------------------------------------------------------------------------

    def release_memory(self, tags: Tags = None, *, weights: Keep = "discard") -> MemoryReport:
        """Give memory to others until :meth:`resume_memory`, without losing a recorded step or an address.

        Args:
            tags: some of "weights", "kv_cache" (which empties the prefix cache too) and "cuda_graph"
                (recorded steps, work buffers, and what torch's allocator has cached); None: all.
            weights: "discard" them, so that requests are refused by WeightsError until others are pushed, or
                keep them on the "host", from where they return. With device="cpu" they are there already:
                then nothing of them is given back.

        Nothing happens to what is released already. Requests are refused while weights or KV cache are away.
        On a GPU the engine has to be built with ``enable_memory_saver=True``.

        Raises InvalidRequestError, which names them, while there are requests; InvalidParameterError for
        other tags; ConfigError where nothing can be released; DeviceMemoryError.
        """
        return self._loop.call(lambda core: self._memory.release(core, tags, weights))

    def resume_memory(self, tags: Tags = None) -> MemoryReport:
        """Take memory back, in the same place. Nothing happens to what is there.

        Raises InvalidParameterError for other tags. DeviceMemoryError if too little memory is free: free
        some, and call it again.
        """
        return self._loop.call(lambda core: self._memory.resume(core, tags))

    async def async_release_memory(self, tags: Tags = None, *, weights: Keep = "discard") -> MemoryReport:
        """:meth:`release_memory` for a running event loop."""
        return await run_beside(lambda: self.release_memory(tags, weights=weights))

    async def async_resume_memory(self, tags: Tags = None) -> MemoryReport:
        """:meth:`resume_memory` for a running event loop."""
        return await run_beside(lambda: self.resume_memory(tags))

    def release_memory_occupation(self, tags: Tags = None) -> None:
        """:meth:`release_memory` under the documented name; weights have to be pushed anew."""
        self.release_memory(tags)

    def resume_memory_occupation(self, tags: Tags = None) -> None:
        """:meth:`resume_memory` under the documented name."""
        self.resume_memory(tags)

    # ---- standing still ----------------------------------------------------------------------------

    def pause(self, mode: OnRunning = "abort") -> int:
        """Take no steps until :meth:`resume`; requests that come meanwhile wait.

        ``mode`` is what becomes of those that are there, as ``on_running`` of :meth:`update_weights`. Returns
        how many were aborted. Idempotent: of a paused engine it changes what becomes of requests.
        """
        return self._pauses.pause(mode)

    def resume(self) -> None:
        """Go on after :meth:`pause`. Idempotent."""
        self._pauses.resume()

    # ---- lifetime ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop after the current step and free everything. Idempotent; waiters get EngineClosedError.

        In a done callback or a logit processor it returns at once, and the engine ends after the step.
        """
        try:
            super().close()
        finally:
            self._groups.close()
