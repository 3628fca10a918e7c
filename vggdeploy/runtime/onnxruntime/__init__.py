"""The ONNX Runtime backend, and its execution providers."""
