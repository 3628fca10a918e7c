"""Mutation fuzzers of every parser; see `test_fuzz` and `benchmarks/fuzz.py`."""
