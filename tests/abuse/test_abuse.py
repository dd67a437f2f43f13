"""Small versions of the abuse that ``python -m tests.abuse`` does for hours."""

from __future__ import annotations

import logging

import pytest

from .fuzz import Fuzz
from .kills import Kills
from .soak import Soak


@pytest.fixture(autouse=True)
def _log_level():
    """The scripts quieten the log, which outlives them."""
    logger = logging.getLogger("rootlet")
    level = logger.level
    yield
    logger.setLevel(level)


# kinds of requests that are still known to do harm
HARMFUL = ()


def test_fuzzed_requests_harm_nobody(tmp_path):
    report = Fuzz(100, seed=14, skip=HARMFUL).run(tmp_path)
    assert not report.failures, str(report)
    assert sum(report.outcomes.values()) == 100


def test_killed_jobs_end_like_those_in_peace(tmp_path):
    report = Kills(3, seed=14).run(tmp_path)
    assert not report.failures, str(report)
    assert report.outcomes["kills"] > 0


def test_grammars_without_end(tmp_path):
    report = Soak(3, seed=14).run(tmp_path)
    assert not report.failures, str(report)
    assert len(report.outcomes) > 3
