"""The building blocks that decoder families share."""
