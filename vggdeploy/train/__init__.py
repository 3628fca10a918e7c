"""Training: what is done (`recipe`), how it went (`record`), and the run itself (`loop`). The first two need no torch."""
