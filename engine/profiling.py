"""A profile of the engine's own thread and of its GPU, as a trace for chrome://tracing or Perfetto."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ..errors import ProfileError


class Profile:
    """At most one torch profiler at a time. Started and stopped on the thread whose work it records.

    ``device``: the engine's. A GPU that is not the engine's is left alone: to ask what it does is to wake it.
    """

    def __init__(self, device: torch.device) -> None:
        self._activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler: torch.profiler.profile | None = None
        self._path = Path()

    def start(self, folder: str | Path) -> None:
        """Begin to record; the trace will be a new file in ``folder``, which is made if needed.

        Raises ProfileError while another profile runs, OSError if the folder cannot be made.
        """
        if self._profiler is not None:
            raise ProfileError(f"A profile is running already; stop_profile() writes it to {self._path}.")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"rootlet-{time.strftime('%Y%m%d-%H%M%S')}-{time.monotonic_ns()}.trace.json"
        # acc_events: without it torch warns of cycles that nobody asked for
        self._profiler = torch.profiler.profile(activities=self._activities, acc_events=True)
        self._profiler.start()

    def stop(self) -> Path:
        """Write what was recorded; return the file. Raises ProfileError if nothing was started."""
        if self._profiler is None:
            raise ProfileError("No profile is running: call start_profile() first.")
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        profiler.export_chrome_trace(str(self._path))
        return self._path
