"""The least that builds an engine with TensorRT for RTX: parser, builder, file. What `build_vgg16.py` compares with.

python benchmarks/bare_build.py model.onnx model.engine sm80,sm86,sm89,sm120,sm121 1:8:256
"""

from __future__ import annotations

import sys
from pathlib import Path

import tensorrt_rtx as trt


def main(source: str, target: str, capabilities: str, batch: str) -> None:
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(Path(source).read_bytes())
    config = builder.create_builder_config()
    names = capabilities.split(",")
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), index)
    image = network.get_input(0)
    profile = builder.create_optimization_profile()
    profile.set_shape(image.name, *((int(size), *image.shape[1:]) for size in batch.split(":")))
    config.add_optimization_profile(profile)
    Path(target).write_bytes(builder.build_serialized_network(network, config))


if __name__ == "__main__":
    main(*sys.argv[1:])
