"""Beside the host's code: what it raises, its torch modes, its event loop."""
