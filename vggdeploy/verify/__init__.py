"""``vggdeploy verify``: variants are proven against the FP32 PyTorch reference."""
