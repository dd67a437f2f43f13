"""Teams: every piece of work is done once, whoever does it, and a team leaves nothing behind.

Adding to a residual in place is what tells: a row done twice is wrong, and so is one left out.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet.kernels import native, threads
from rootlet.kernels.norm import add_rms_norm
from rootlet.kernels.threads import Team, default_threads, usable_cores

needs_c = pytest.mark.skipif(native.load() is None, reason="without the C kernels a team has no helpers")


def system_threads() -> set[int]:
    """Threads of this process, Python's and all others."""
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def work(rows: int, size: int = 700) -> bool:
    """Whether each row of a residual was added to once; enough of them for a team to share."""
    x, residual = torch.randn(2, rows, size)
    expected = residual + x
    add_rms_norm(x, residual, torch.ones(size), 1e-5)
    return torch.equal(residual, expected)


def run(script: str) -> subprocess.CompletedProcess[str]:
    """A Python process of its own, which must end by itself."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )


@settings(max_examples=30, deadline=None)
@given(
    num_threads=st.integers(1, 9),
    torch_threads=st.sampled_from([1, 3]),
    jobs=st.lists(st.integers(1, 700), max_size=20),
)
def test_every_row_is_done_once(num_threads, torch_threads, jobs):
    """By helpers, or by OpenMP's threads."""
    team = Team(num_threads, torch_threads)
    with team.bound():
        assert all(work(rows) for rows in jobs)
    team.close()


@needs_c
def test_helpers_are_as_many_as_said_and_end_with_the_team():
    before = system_threads()
    team = Team(4)
    assert system_threads() == before  # the first work starts them
    with team.bound():
        assert work(300)
        assert len(system_threads() - before) == 3
    team.close()
    team.close()
    assert system_threads() == before
    team = Team(3)
    with team.bound():
        assert work(300)
    del team
    assert system_threads() == before


def test_two_teams_in_two_threads_at_once():
    """And both with one team: who comes second computes alone."""
    shared = Team(2)
    wrong = []

    def compute(team: Team) -> None:
        for _ in range(60):
            with team.bound():
                if not work(200):
                    wrong.append(team)

    teams = (Team(2), Team(3, torch_threads=2), shared, shared)
    workers = [threading.Thread(target=compute, args=(team,)) for team in teams]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert not wrong
    for team in teams:
        team.close()


@pytest.mark.parametrize("inner", [1, 3])
def test_torch_is_limited_inside_and_for_this_thread_only(inner):
    def seen_by_another() -> int:
        box = []
        thread = threading.Thread(target=lambda: box.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return box[0]

    before = torch.get_num_threads()
    elsewhere = seen_by_another()
    with Team(5, torch_threads=2).bound():
        assert torch.get_num_threads() == 2
        with Team(4, inner).bound():
            assert torch.get_num_threads() == inner
            assert seen_by_another() == elsewhere
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), Team(4, inner).bound():
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_torch_starts_no_more_threads_than_allowed():
    """Its own loops and MKL's products, counted by the system. The process then ends, its helpers waiting."""
    done = run("""
    import os, torch
    from rootlet.kernels.norm import add_rms_norm
    from rootlet.kernels.threads import Team

    def count():
        return len(os.listdir("/proc/self/task"))

    def compute():
        x = torch.randn(700, 700)
        return (x @ x).exp().sum(), torch.sort(x)

    torch.set_num_threads(4)
    before = count()
    with Team(1).bound():
        compute()
    alone = count() - before
    with Team(3, torch_threads=3).bound():
        compute()
        add_rms_norm(torch.ones(300, 700), torch.ones(300, 700), torch.ones(700), 1e-5)
    print(alone, count() - before, torch.get_num_threads())
    kept = Team(3)
    with kept.bound():
        add_rms_norm(torch.ones(300, 700), torch.ones(300, 700), torch.ones(700), 1e-5)
    """)
    assert (done.returncode, done.stdout) == (0, "0 2 4\n"), done.stderr


@needs_c
def test_a_forked_child_computes_alone():
    done = run("""
    import os, torch
    from rootlet.kernels.norm import add_rms_norm
    from rootlet.kernels.threads import Team

    def work():
        x, residual = torch.ones(2, 300, 700)
        add_rms_norm(x, residual, torch.ones(700), 1e-5)
        return bool((residual == 2).all())

    team = Team(3)
    with team.bound():
        assert work()
        child = os.fork()
        if child == 0:
            assert work() and len(os.listdir("/proc/self/task")) == 1
    if child == 0:
        team.close()
        own = Team(2)
        with own.bound():
            assert work() and len(os.listdir("/proc/self/task")) == 2
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
    """)
    assert done.stdout == "0\n", done.stderr


@pytest.mark.parametrize("count", [0, -1, 513, 2**40])
def test_other_numbers_are_refused(count):
    with pytest.raises(ValueError, match="1 to 512"):
        Team(count)


def test_the_default_stays_within_what_the_process_may_use(monkeypatch):
    assert 1 <= default_threads() <= usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    assert default_threads() == usable_cores()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, math.inf),
        ({"cpu.max": "max 100000"}, math.inf),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "400000 100000", "own/cpu.max": "50000 100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2.5),
        ({"cpu.max": "what is this"}, math.inf),
    ],
)
def test_quotas_of_control_groups(tmp_path, files, cores):
    (tmp_path / "group").write_text("0::/own\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads._quota(tmp_path, tmp_path / "group") == cores
