"""What sessions on NVIDIA GPUs share: CUDA, arrays on the device, graphs, and streams that run side by side."""
