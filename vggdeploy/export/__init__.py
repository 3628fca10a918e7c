"""From a checkpoint's model to files that need no Python class: one module per format."""
