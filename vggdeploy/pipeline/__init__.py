"""The whole way, and each part of it: export, prove, measure."""
