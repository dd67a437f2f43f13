"""From options to a running core."""
