"""What callers ask: arguments checked and made into requests."""
