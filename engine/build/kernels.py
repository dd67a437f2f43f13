"""Compiling an engine's kernels beside whatever else its construction does, reading weights above all.

Nothing of it runs on a device until the kernels are loaded: a model without memory takes steps of padding,
every launch is handed over instead of made, and each variant of a kernel is compiled once, by one of some
threads. So it begins when the configuration is read, and whoever runs the first step waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from .backends import make_backend
from .memory import make_stage
from .resolved import Sizes, output_kind

if TYPE_CHECKING:
    from ...models.config import ModelConfig
    from ...models.interface import Model
    from ..config import EngineConfig
    from ..steps.rehearsal.compiler import KernelCompiler

logger = logging.getLogger("rootlet.engine")


class KernelsAhead:
    """The kernels that an engine on ``device`` may launch. Leaving the context ends the threads.

    Of a model of the user's own class only those that draw tokens are known; what the model itself launches
    is compiled when it first runs.
    """

    def __init__(self, config: EngineConfig, backend_name: str, device: torch.device) -> None:
        self._config = config
        self._backend_name = backend_name
        self._device = device
        self._thread: threading.Thread | None = None
        self._compiler: KernelCompiler | None = None
        self._is_closed = False
        self._is_complete = False

    def __enter__(self) -> KernelsAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        if self._compiler is not None:
            self._compiler.close()
        if self._thread is not None:
            self._thread.join()

    def begin(self, model_config: ModelConfig, make_model: Callable[[], Model] | None) -> None:
        """Compile, on threads of its own, what the model needs; ``make_model`` makes it without memory."""
        if self._device.type == "cuda":
            self._thread = threading.Thread(
                target=self._run, args=(model_config, make_model), name="rootlet-collect", daemon=True
            )
            self._thread.start()

    def wait(self) -> bool:
        """Block until the kernels are compiled and loaded; False if some of them may be missing."""
        if self._thread is not None:
            begun = time.monotonic()
            self._thread.join()
            logger.debug("Waited %.2f s for kernels", time.monotonic() - begun)
        return self._is_complete

    def _run(self, model_config: ModelConfig, make_model: Callable[[], Model] | None) -> None:
        try:
            self._prepare(model_config, make_model)
        except Exception:  # the first launches tell
            logger.debug("Not all kernels are compiled ahead", exc_info=True)

    def _prepare(self, model_config: ModelConfig, make_model: Callable[[], Model] | None) -> None:
        from ...kernels.gpu.jit import LOADING, collecting  # loads Triton, here beside the weights
        from ...kernels.gpu.long_prefill import can_use, load_library
        from ..steps.rehearsal.compiler import KernelCompiler

        launch_all, is_complete = self._rehearsal(model_config, make_model)
        begun = time.monotonic()
        with LOADING, torch.cuda.device(self._device):
            self._compiler = compiler = KernelCompiler(self._device)
            if self._is_closed:  # meanwhile: nobody else closes it
                compiler.close()
            if can_use(self._device, torch.bfloat16, 64):
                compiler.run(partial(load_library, self._device, torch.bfloat16))
            with collecting(compiler):
                launch_all()
            found = time.monotonic()
            count = compiler.load()
        self._is_complete = is_complete
        logger.debug(
            "%d kernels: found in %.2f s, ready %.2f s later", count, found - begun, time.monotonic() - found
        )

    def _rehearsal(
        self, model_config: ModelConfig, make_model: Callable[[], Model] | None
    ) -> tuple[Callable[[], None], bool]:
        """What launches the kernels that can be known, and whether these are all."""
        from ..steps.rehearsal.draws import draw_without_model

        meta, vocab_size = torch.device("meta"), model_config.vocab_size
        if make_model is None:
            return partial(draw_without_model, vocab_size, meta), False
        model = make_model()
        backend = make_backend(self._backend_name, self._config, model, self._device)
        if not backend.compiles_ahead:
            return partial(draw_without_model, vocab_size, meta), False
        sizes = Sizes.resolve(self._config, model_config, on_gpu=True)
        embeds = not output_kind(self._config, model).is_text
        return make_stage(sizes, backend, model, meta, vocab_size=vocab_size, embeds=embeds).run_all, True
