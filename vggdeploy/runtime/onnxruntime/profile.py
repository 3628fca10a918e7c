"""The JSON that ONNX Runtime writes of a session's kernels, call by call."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from vggdeploy.runtime.base import Kernel

# ``fused node_linear``, ``relu_3_nchwc``, ``node_conv2d_1_token_59``, ``relu_q``, ``InsertedPrecisionFreeCast_relu_nchwc``:
# an operator, or what it makes, with what ONNX Runtime's optimisers put around the name.
_ADDED = re.compile(r"^(?:fused |InsertedPrecisionFreeCast_)+|(?:_token_\d+|_nchwc|_q)+$")
_SUFFIX = "_kernel_time"


def read_calls(data: bytes) -> list[tuple[Kernel, ...]]:
    """The kernels of each call of ``run``, in order; times in whole microseconds, as they are written."""
    calls, under_way = [], []
    for event in json.loads(data):
        name = str(event["name"])
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            under_way.append(_kernel(name.removesuffix(_SUFFIX), event))
        elif name == "model_run":  # written when the call is over
            calls.append(tuple(under_way))
            under_way = []
    return calls


def _kernel(name: str, event: dict[str, Any]) -> Kernel:
    return Kernel(name, str(event["args"].get("op_name", "")), tuple(_names(name)), event["dur"] / 1e3)


def _names(name: str) -> Iterator[str]:
    """The operator's name, as it is and without what was put around it."""
    yield name
    if (plain := _ADDED.sub("", name)) != name:
        yield plain
