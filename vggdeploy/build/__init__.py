"""``vggdeploy build``: TensorRT engines from a bundle's ONNX files."""
