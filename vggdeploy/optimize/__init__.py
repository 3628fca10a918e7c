"""``vggdeploy optimize``: steps that make a model smaller or faster."""
