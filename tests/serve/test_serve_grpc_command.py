"""``vggdeploy serve --grpc-port`` as a process."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from serve.conftest import Starts
from serve.grpc_calls import TOLERANCE, Golden

from vggdeploy.cli.app import run
from vggdeploy.protocol import messages

pytestmark = pytest.mark.late


def ask(channel: Any, images: np.ndarray, name: str) -> np.ndarray:
    request = messages.message("ModelInferRequest")(model_name="bundle", raw_input_contents=[images.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    reply, _ = channel.unary_unary(f"/{messages.SERVICE}/ModelInfer").with_call(
        request.SerializeToString(), timeout=20, metadata=(("x-request-id", name),), wait_for_ready=True
    )
    found = messages.message("ModelInferResponse").FromString(reply)
    return np.frombuffer(found.raw_output_contents[0], "<f4").reshape(found.outputs[0].shape)


def test_workers_share_the_port_log_their_calls_and_end_with_0(start: Starts, bundle_dir: Path, golden: Golden) -> None:
    command = start(bundle_dir, "--variant", "onnx-fp32", "--workers", "2", "--grpc-port", "0", "--drain", "0")
    found = re.search(r"gRPC on port (\d+)", command.lines[0])
    assert found is not None
    answered_by: set[int] = set()
    end = time.monotonic() + 60
    number = 0
    while len(answered_by) < 2:
        assert time.monotonic() < end, command.lines
        number += 1
        # A connection of its own each time: the kernel gives each to one of the workers.
        with grpc.insecure_channel(f"127.0.0.1:{found[1]}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            logits = ask(channel, golden[0][:2], f"call-{number}.")
        assert np.allclose(logits, golden[1][:2], atol=TOLERANCE)
        line = json.loads(command.wait_for(f'"call-{number}."'))
        assert (line["method"], line["path"], line["status"]) == ("gRPC", f"/{messages.SERVICE}/ModelInfer", "OK")
        assert line["client"] == "127.0.0.1"
        answered_by.add(line["process"])
    assert command.stop() == 0
    assert "Traceback" not in "".join(command.lines)


def test_a_port_of_another_is_told(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert run(["serve", str(bundle_dir), "--port", "0", "--grpc-port", port]) == 1
    assert "choose another --grpc-port" in capsys.readouterr().err
