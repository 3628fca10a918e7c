"""An engine measured on its GPU."""
