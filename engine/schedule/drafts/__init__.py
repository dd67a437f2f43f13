"""Speculation: tokens that are guessed, computed in one pass, and kept as far as they are drawn."""
