"""Benchmarks for asv, and `peers.py`, a command of its own."""
