"""A bundle on the Hugging Face Hub, or a server that speaks as it does: pushed with a card made from its proofs, pulled by the
machine's policy."""
