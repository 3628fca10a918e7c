"""What the machine gives: files, the cache, cores and memory, optional packages, a Ray cluster."""
