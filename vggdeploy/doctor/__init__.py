"""``vggdeploy doctor``: what this machine can run, tried for real."""
