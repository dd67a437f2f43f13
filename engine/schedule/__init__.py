"""What is computed next: requests, batches, policies and the scheduler; nothing here imports torch."""
