"""``vggdeploy search``: the fastest variant that keeps the accuracy that was asked for."""
