"""``vggdeploy embed``: images become vectors, in one process or over a Ray cluster."""
