"""The steps of ``vggdeploy optimize``."""
