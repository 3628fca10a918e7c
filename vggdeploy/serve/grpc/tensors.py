"""Requests and answers of the protocol as its messages have them, and as the rest of the server has them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from vggdeploy.bundle import Manifest
from vggdeploy.engine.async_engine import Answer
from vggdeploy.errors import InputError
from vggdeploy.protocol.messages import message
from vggdeploy.serve.tensors import (
    FIX,
    Array,
    InferRequest,
    InputTensor,
    WantedOutput,
    classified,
    from_bytes,
    text_bytes,
)

_CONTENTS = {"UINT8": ("uint_contents", np.uint32), "FP32": ("fp32_contents", np.float32)}
_ModelInferRequest = message("ModelInferRequest")
_ModelInferResponse = message("ModelInferResponse")


def read_request(body: bytes) -> tuple[Any, InferRequest, dict[str, Array]]:
    """The message, the request as `vggdeploy.serve.tensors` has it, and its tensors by name.

    Raises:
        InputError: it is no message of the protocol, or its parts contradict each other.
    """
    try:
        sent = _ModelInferRequest.FromString(body)
    except Exception as error:  # google.protobuf's own DecodeError; which class that is depends on its implementation
        raise InputError("the request is not of the protocol", FIX) from error
    try:
        asked = msgspec.convert(
            {
                "id": sent.id,
                "inputs": [{"name": i.name, "shape": list(i.shape), "datatype": i.datatype} for i in sent.inputs],
                "outputs": [{"name": o.name, "parameters": _values(o.parameters)} for o in sent.outputs],
            },
            InferRequest,
        )
    except msgspec.ValidationError as error:
        raise InputError(f"the request is not of the protocol: {error}", FIX) from None
    raw = sent.raw_input_contents
    if raw and len(raw) != len(asked.inputs):
        raise InputError(f"{len(raw)} raw contents were sent for {len(asked.inputs)} inputs", FIX)
    tensors: dict[str, Array] = {}
    for number, (tensor, given) in enumerate(zip(asked.inputs, sent.inputs, strict=True)):
        if tensor.name in tensors:
            raise InputError(f"the input {tensor.name[:80]!r} is given twice", FIX)
        if any(name.startswith("shared_memory_") for name in given.parameters):
            raise InputError("shared memory is not served", "send the tensor's bytes")
        tensors[tensor.name] = from_bytes(tensor, memoryview(raw[number])) if raw else _from_contents(tensor, given)
    return sent, asked, tensors


def _values(parameters: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "bool_param") for name, value in parameters.items()
    }


def _from_contents(tensor: InputTensor, given: Any) -> Array:
    if tensor.datatype not in _CONTENTS:
        from_bytes(tensor, memoryview(b""))  # which says so
    field, dtype = _CONTENTS[tensor.datatype]
    values = np.asarray(getattr(given.contents, field), dtype)
    if tensor.datatype == "UINT8":
        if values.size and values.max() > 255:
            raise InputError("the data are no whole numbers from 0 to 255", FIX)
        values = values.astype(np.uint8)
    return from_bytes(tensor, memoryview(values.tobytes()))


def write_answer(sent: Any, asked: InferRequest, answer: Answer, model: str) -> Any:
    """The answer's message; every tensor comes raw, as Triton's do."""
    manifest: Manifest = answer.manifest
    reply = _ModelInferResponse(model_name=model, model_version="1", id=sent.id)
    for wanted in asked.outputs or [WantedOutput(spec.name) for spec in manifest.outputs]:
        array: Array = answer.outputs[wanted.name]
        datatype, count = "FP32", wanted.parameters.get("classification")
        if count is None:
            data = array.astype("<f4", copy=False).tobytes()
        else:
            datatype, array = "BYTES", classified(wanted.name, answer.outputs, manifest, count)
            data = text_bytes(array)
        reply.outputs.add(name=wanted.name, datatype=datatype, shape=array.shape)
        reply.raw_output_contents.append(data)
    return reply
