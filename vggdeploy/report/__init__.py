"""Pictures and pages of what was measured. Importing this package, or `curves` and `evaluation`, needs no Altair."""
