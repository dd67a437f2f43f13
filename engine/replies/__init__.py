"""What callers hold and get: handles, streams, outputs and their text."""
