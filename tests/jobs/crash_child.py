"""A job in a process of its own that dies while writing: ``input output kill|rewrite|limit number``.

``kill n``: SIGKILL after half of the n-th record of this run is written. ``rewrite n``: SIGKILL at the n-th
replacement of the output by a new one, with errors to be retried. ``limit n``: files may not grow beyond n
bytes, as on a full disk.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

from fake_engine import FakeEngine

from rootlet import run_jobs
from rootlet.engine.jobs import output_file


def main(input_path: str, output_path: str, how: str, number: str) -> None:
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), int(number)))
    else:
        output_file.os = KillingOs("write" if how == "kill" else "replace", int(number))
    run_jobs(
        input_path,
        output_path,
        engine=FakeEngine(),
        sampling_params={"seed": 1},
        progress=False,
        retry_errors=how == "rewrite",
    )


class KillingOs:
    """The ``os`` module, except that the n-th call of one function is where SIGKILL comes."""

    def __init__(self, function: str, calls_left: int) -> None:
        self._function = function
        self._calls_left = calls_left

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def write(self, fd: int, data: bytes) -> int:
        if self._is_the_moment("write"):
            os.write(fd, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return os.write(fd, data)

    def replace(self, old: str, new: str) -> None:
        if self._is_the_moment("replace"):
            os.kill(os.getpid(), signal.SIGKILL)
        os.replace(old, new)

    def _is_the_moment(self, function: str) -> bool:
        self._calls_left -= function == self._function
        return self._calls_left == 0 and function == self._function


main(*sys.argv[1:])
