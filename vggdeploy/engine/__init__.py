"""What applications hold: a bundle that is loaded, proven and ready to classify and embed. Torch-free."""
