"""``vggdeploy evaluate``: how well a checkpoint or a variant classifies."""
