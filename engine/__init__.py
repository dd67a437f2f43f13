"""The in-process engine: requests, scheduler, runner, owner thread, outputs and JSONL jobs."""
