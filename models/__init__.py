"""Model families, their shared layers, and loading them from a checkpoint."""
