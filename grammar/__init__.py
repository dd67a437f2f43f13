"""Chat formats; structured outputs are still to come: requests with a constraint are refused by name."""
