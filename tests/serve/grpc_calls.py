"""What the tests of gRPC share."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as rpc

from vggdeploy.protocol import messages
from vggdeploy.serve.settings import Settings

TOLERANCE = 1e-4
Golden = tuple[np.ndarray, np.ndarray]


def settings(bundle_dir: Path, port: int, **more: Any) -> Settings:
    return Settings(bundle=str(bundle_dir), variant="onnx-fp32", grpc_port=port, **more)


def image(images: np.ndarray) -> Any:
    tensor = rpc.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return tensor


def together(client: Any, batches: list[np.ndarray]) -> list[Any]:
    """Ask for all at once; each answer, or the error in its place."""
    found: dict[int, Any] = {}
    done = threading.Event()

    def keep(number: int, result: Any, error: Any) -> None:
        found[number] = error or result
        if len(found) == len(batches):
            done.set()

    for number, images in enumerate(batches):
        client.async_infer("bundle", [image(images)], partial(keep, number))
    assert done.wait(30), found
    return [found[number] for number in range(len(batches))]


def raw(address: str, data: bytes, method: str = "ModelInfer", **options: Any) -> tuple[Any, str]:
    """Status and details of a call with these bytes as its message."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{messages.SERVICE}/{method}")
        try:
            call(data, timeout=20, **options)
        except grpc.RpcError as error:
            return error.code(), error.details()
    return grpc.StatusCode.OK, ""
