"""Structured outputs and chat formats: nothing yet; requests with a constraint are refused by name."""
