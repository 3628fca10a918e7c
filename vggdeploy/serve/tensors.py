"""Requests and answers of the Open Inference Protocol, version 2, with its binary tensor and classification extensions.

Sources: github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md); Triton Inference Server's
protocol/extension_binary_data.md and extension_classification.md.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from math import prod
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vggdeploy.bundle import Manifest
from vggdeploy.engine.embedding import SCORES
from vggdeploy.engine.predictions import probabilities
from vggdeploy.errors import InputError, unknown_name
from vggdeploy.types import TensorSpec

Array = NDArray[Any]
HEADER_LENGTH = "inference-header-content-length"
DATATYPES = {"uint8": "UINT8", "float32": "FP32"}
_DTYPES = {name: np.dtype(dtype).newbyteorder("<") for dtype, name in DATATYPES.items()}  # the protocol's byte order
FIX = "see GET /v2/models/NAME for names, types and shapes"

Size = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class InputTensor(msgspec.Struct):
    name: str
    shape: Annotated[list[Size], msgspec.Meta(min_length=1, max_length=8)]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class WantedOutput(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """Unknown keys are ignored, as the protocol asks for."""

    inputs: Annotated[list[InputTensor], msgspec.Meta(max_length=16)]
    id: Annotated[str, msgspec.Meta(max_length=256)] = ""
    outputs: Annotated[list[WantedOutput], msgspec.Meta(max_length=64)] = []
    parameters: dict[str, Any] = {}


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """A body that was sent with ``Content-Encoding: gzip`` or ``deflate``; it may not grow beyond ``limit`` bytes.

    Raises:
        InputError: another encoding, damaged, or larger.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise InputError(
            f"the content encoding '{encoding[:20]}' is not known", "send it plain, or with gzip or deflate"
        )
    reader = zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
    try:
        data = reader.decompress(body, limit + 1)
    except zlib.error as error:
        raise InputError(f"the body is not {encoding}", "send it plain") from error
    if len(data) > limit or not reader.eof:
        raise InputError(f"the body is cut short, or larger than {limit} bytes when unpacked", "send less at a time")
    return data


def read_request(body: bytes, json_length: int | None) -> tuple[InferRequest, dict[str, Array]]:
    """The request, and its tensors by name.

    Args:
        json_length: of the JSON at the start of a body with binary tensors behind it; None where all is JSON.

    Raises:
        InputError: it is not of the protocol, or its parts contradict each other.
    """
    length = len(body) if json_length is None else json_length
    if not 0 <= length <= len(body):
        raise InputError(
            f"the header length {length} is beyond the body of {len(body)} bytes", "give the JSON's length"
        )
    try:
        request = msgspec.json.decode(body[:length], type=InferRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the request is not of the protocol: {error}", FIX) from None
    rest = memoryview(body)[length:]
    tensors: dict[str, Array] = {}
    for tensor in request.inputs:
        if tensor.name in tensors:
            raise InputError(f"the input {tensor.name[:80]!r} is given twice", FIX)
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            tensors[tensor.name] = _from_json(tensor)
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
            raise InputError(
                f"binary_data_size is {str(size)[:20]}, and {len(rest)} bytes are there",
                "send as many bytes as announced",
            )
        tensors[tensor.name] = from_bytes(tensor, rest[:size])
        rest = rest[size:]
    if len(rest):
        raise InputError(f"{len(rest)} bytes belong to no input", "give each binary input its binary_data_size")
    return request, tensors


def _dtype(tensor: InputTensor) -> np.dtype[Any]:
    if tensor.datatype not in _DTYPES:
        raise InputError(f"the datatype {tensor.datatype[:20]!r} is none of {', '.join(_DTYPES)}", FIX)
    return _DTYPES[tensor.datatype]


def from_bytes(tensor: InputTensor, data: memoryview) -> Array:
    dtype = _dtype(tensor)
    if prod(tensor.shape) * dtype.itemsize != len(data):
        raise InputError(f"{len(data)} bytes are no {tensor.datatype}{tensor.shape}", FIX)
    return np.frombuffer(data, dtype).reshape(tensor.shape).astype(dtype.newbyteorder("="), copy=False)


def _from_json(tensor: InputTensor) -> Array:
    dtype = _dtype(tensor)
    if tensor.data is None:
        raise InputError(f"the input {tensor.name[:80]!r} has no data", "give data, or binary_data_size")
    try:
        values = np.asarray(tensor.data)
    except (ValueError, OverflowError) as error:  # lists of different lengths; a number beyond 64 bits
        raise InputError("the data are no array of numbers", FIX) from error
    if values.size != prod(tensor.shape):
        raise InputError(f"{values.size} numbers are no {tensor.datatype}{tensor.shape}", FIX)
    values = values.reshape(tensor.shape)
    if dtype.kind == "u":
        if values.size and (values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255):
            raise InputError("the data are no whole numbers from 0 to 255", FIX)
    elif values.size and values.dtype.kind not in "iuf":
        raise InputError("the data are no numbers", FIX)
    with np.errstate(over="ignore"):  # what becomes infinite is refused with a better word
        return values.astype(dtype.newbyteorder("="))


def check_outputs(request: InferRequest, manifest: Manifest) -> None:
    """Refuse outputs that there are not, before anything is computed.

    Raises:
        UsageError: an unknown name. InputError: a classification of what is no class score, or the same twice.
    """
    names = {spec.name for spec in manifest.outputs}
    asked: set[tuple[str, bool]] = set()
    for wanted in request.outputs:
        if wanted.name not in names:
            raise unknown_name("output", wanted.name[:80], names)
        if "classification" in wanted.parameters:
            count = wanted.parameters["classification"]
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise InputError("classification has to be a whole number above 0", FIX)
            if wanted.name not in SCORES:
                raise InputError(f"{wanted.name} is no class score", "ask for the classification of logits")
        kind = wanted.name, "classification" in wanted.parameters
        if kind in asked:  # else a small request would have a feature map written 64 times
            raise InputError(f"the output {wanted.name[:80]!r} is asked for twice", "ask for it once")
        asked.add(kind)


def write_answer(
    request: InferRequest, outputs: Mapping[str, Array], manifest: Manifest, *, name: str = ""
) -> tuple[bytes, int | None]:
    """The body of the answer, and the length of its JSON where binary tensors follow it. ``name`` is the model's where that
    is not the manifest's."""
    wanted = request.outputs or [WantedOutput(spec.name) for spec in manifest.outputs]
    binary_too = request.parameters.get("binary_data_output") is True
    described: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for output in wanted:
        values = outputs[output.name]
        count = output.parameters.get("classification")
        datatype: str = "FP32"
        array: Array = values
        if count is not None:
            datatype, array = "BYTES", classified(output.name, outputs, manifest, count)
        entry: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": list(array.shape)}
        if output.parameters.get("binary_data", binary_too) is True:
            blob = text_bytes(array) if datatype == "BYTES" else array.astype("<f4", copy=False).tobytes()
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = array.ravel().tolist()
        described.append(entry)
    answer: dict[str, Any] = {"model_name": name or manifest.name, "model_version": "1", "outputs": described}
    if request.id:
        answer["id"] = request.id
    head = msgspec.json.encode(answer)
    return (b"".join([head, *blobs]), len(head)) if blobs else (head, None)


def classified(name: str, outputs: Mapping[str, Array], manifest: Manifest, count: int) -> Array:
    """``"score:index:label"`` of the highest classes, ``[N, count]``: what the classification extension defines."""
    scores = probabilities(outputs) if name == "probabilities" else outputs[name]
    best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    labels = manifest.labels
    rows = [
        [f"{scores[row, i]:f}:{i}" + (f":{labels[i]}" if labels else "") for i in order.tolist()]
        for row, order in enumerate(best)
    ]
    return np.asarray(rows, object)


def text_bytes(texts: Array) -> bytes:
    encoded = [text.encode() for text in texts.ravel().tolist()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def describe(spec: TensorSpec) -> dict[str, Any]:
    """One input or output as model metadata have it; -1 is the batch."""
    shape = [-1 if isinstance(size, str) else size for size in spec.shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}
