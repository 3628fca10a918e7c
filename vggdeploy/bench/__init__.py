"""``vggdeploy bench`` and ``compare``: latency and throughput, measured beside each other."""
