"""Structured outputs and chat formats. Nothing is here yet; requests with a constraint are refused by name."""
