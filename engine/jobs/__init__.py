"""JSONL jobs: a file of prompts in, a file of answers out, resumable at any moment.

:func:`run_jobs` is the door; ``python -m rootlet batch`` is the same on the command line.
"""

from .job import run_jobs
from .summary import JobSummary

__all__ = ["JobSummary", "run_jobs"]
