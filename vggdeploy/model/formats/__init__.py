"""Whether a model file is what the manifest's network looks like when we write it, found out before any library opens it."""
