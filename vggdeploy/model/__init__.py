"""The network itself. `summary` and `outputs` need no torch; the other modules do."""
