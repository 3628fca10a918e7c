"""A server under load, ours or another's: what a client of the Open Inference Protocol sees of it."""
