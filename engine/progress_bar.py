"""The progress bar of everything that takes more than a few seconds."""

from __future__ import annotations

from tqdm import tqdm


class ProgressBar(tqdm):
    """tqdm's bar, without the monitor thread it would start: that thread outlives every bar."""

    monitor_interval = 0
