"""The backends of TensorRT and of TensorRT for RTX."""
