"""Faults, planted in the files of a copied bundle with hashes and all: only what compares can find them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vggdeploy.bundle import Bundle, Manifest, update_bundle
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, Checkpoint, read_checkpoint
from vggdeploy.records import to_json

Change = Callable[[np.ndarray], np.ndarray]


def rewrite_onnx(root: Path, name: str, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change an ONNX variant's graph."""
    bundle = Bundle.open(root)
    path = bundle.manifest.variant(name).path
    model = onnx.load(bundle.path(path))
    change(model)
    with update_bundle(bundle) as draft:
        draft.write(path, model.SerializeToString())


def rewrite_weight(root: Path, name: str, weight: str, change: Change) -> None:
    """Change one weight of an ONNX variant."""

    def apply(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == weight)
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(array), array.dtype), weight))

    rewrite_onnx(root, name, apply)


def rewrite_manifest(root: Path, change: Callable[[Manifest], Manifest]) -> None:
    bundle = Bundle.open(root)
    with update_bundle(bundle) as draft:
        draft.manifest = change(bundle.manifest)


def swap_labels(manifest: Manifest) -> Manifest:
    first, second, *others = manifest.labels
    return msgspec.structs.replace(manifest, labels=(second, first, *others))


def convolution_in_fp32(index: int) -> Callable[[onnx.ModelProto], None]:
    """One convolution of an FP16 graph, computed in FP32 between casts: exact weights, so no answer betrays it."""

    def apply(model: onnx.ModelProto) -> None:
        graph = model.graph
        weights = {t.name: t for t in graph.initializer}
        place, node = [(i, n) for i, n in enumerate(graph.node) if n.op_type == "Conv"][index]
        for weight in node.input[1:]:
            wide = numpy_helper.to_array(weights[weight]).astype(np.float32)
            weights[weight].CopyFrom(numpy_helper.from_array(wide, weight))
        made = node.output[0]
        widened = helper.make_node("Cast", [node.input[0]], [f"{made}_in"], to=TensorProto.FLOAT)
        narrowed = helper.make_node("Cast", [f"{made}_wide"], [made], to=TensorProto.FLOAT16)
        node.input[0], node.output[0] = f"{made}_in", f"{made}_wide"
        for info in [v for v in graph.value_info if v.name == made]:
            graph.value_info.remove(info)
        graph.node.insert(place, widened)
        graph.node.insert(place + 2, narrowed)

    return apply


def channels_reversed(model: onnx.ModelProto) -> None:
    """BGR for RGB, as an OpenCV pipeline would feed it: what enters the graph, the last axis backwards."""
    graph = model.graph
    image = graph.input[0].name
    graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "bgr"))
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == image:
                node.input[place] = "image_bgr"
    graph.node.insert(0, helper.make_node("Gather", [image, "bgr"], ["image_bgr"], axis=3))


def flipped_bit(bit: int, position: int | None = None) -> Change:
    """One bit of one FP32 or FP16 number (default: of the largest one), counted from the lowest."""

    def apply(array: np.ndarray) -> np.ndarray:
        flipped = array.copy()
        words = flipped.reshape(-1).view({2: np.uint16, 4: np.uint32}[array.itemsize])
        words[np.abs(array).argmax() if position is None else position] ^= 1 << bit
        return flipped

    return apply


def rewrite_checkpoint(root: Path, change: Callable[[Checkpoint], Checkpoint]) -> None:
    """Change what the checkpoint in a bundle says of its weights."""
    bundle = Bundle.open(root)
    path = f"{bundle.manifest.reference().path}/{CHECKPOINT_NAME}"
    changed = change(read_checkpoint(bundle.path(bundle.manifest.reference().path)))
    with update_bundle(bundle) as draft:
        draft.write(path, to_json(changed))
