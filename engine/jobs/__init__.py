"""JSONL jobs: a file of prompts in, a file of answers out, resumable at any moment.

:func:`run_jobs` is the door; ``python -m rootlet batch`` is the same on the command line.
:func:`damaged_lines` looks an output over.
"""

from .job import run_jobs
from .summary import JobSummary
from .verify import damaged_lines

__all__ = ["JobSummary", "damaged_lines", "run_jobs"]
