"""Rootlet inside other people's loops. Each needs its package and uses the public Engine API only."""
