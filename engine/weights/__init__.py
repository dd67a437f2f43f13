"""The weights of a running engine: replaced, read, shared with a trainer."""
