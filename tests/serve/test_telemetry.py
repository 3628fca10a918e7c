"""No package that vggdeploy uses tells its maker so. OpenVINO and NNCF would, at their import, ONNX Runtime a while later."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Every name that is looked up, every address that is spoken to, and every process that could do so: OpenVINO's reports
# are sent by a child.
_WATCH = """
import sys, time
watched = {"socket.getaddrinfo", "socket.connect", "os.fork", "os.posix_spawn", "subprocess.Popen"}
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event in watched else None)
"""
_END = """
time.sleep(1)  # a report is sent by a thread
print(sorted(set(seen)), [name for name in sys.modules if name.startswith("openvino_telemetry")])
"""


def run(code: str, home: Path) -> str:
    """The last line that a fresh process prints, in which neither a CI nor an earlier refusal keeps reports back."""
    told = ("CI", "TF_BUILD", "JENKINS_URL", "NNCF_CI", "ORT_DISABLE_TELEMETRY")
    environment = {k: v for k, v in os.environ.items() if k not in told}
    done = subprocess.run(
        [sys.executable, "-c", _WATCH + code + _END],
        env=environment | {"HOME": str(home)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture(autouse=True)
def _openvino() -> None:
    pytest.importorskip("openvino_telemetry")


def test_running_on_onnx_runtime_reports_nothing_and_leaves_no_number_of_this_machine(
    bundle_dir: Path, tmp_path: Path
) -> None:
    code = f"""
import vggdeploy
import numpy as np
with vggdeploy.load({str(bundle_dir)!r}, variant="onnx-fp32") as engine:
    engine.run({{"image": np.zeros((1, 32, 32, 1), np.uint8)}})
"""
    assert run(code, tmp_path) == "[] []"
    assert list(tmp_path.iterdir()) == []


def test_who_has_decided_on_onnx_runtime_s_reports_keeps_that(tmp_path: Path) -> None:
    code = """
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "0"
import vggdeploy
assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
"""
    assert run(code, tmp_path) == "[] []"


def test_the_watch_sees_a_report(tmp_path: Path) -> None:
    code = """
import openvino_telemetry
t = openvino_telemetry.Telemetry(app_name="test", app_version="0", tid="none", backend="ga4", enable_opt_in_dialog=False)
t.backend.url = t.backend.backend_url = "http://127.0.0.1:9/"  # nobody listens there
t.send_event("test", "test", "test")
"""
    assert not run(code, tmp_path).startswith("[]")


def test_running_on_openvino_reports_nothing(bundle_dir: Path, tmp_path: Path) -> None:
    code = f"""
import numpy as np
from vggdeploy.bundle import Bundle
from vggdeploy.export.openvino import openvino_variant
from vggdeploy.runtime import open_session
from vggdeploy.types import Precision
bundle = Bundle.open({str(bundle_dir)!r})
with open_session(bundle, openvino_variant(bundle.manifest.variant("onnx-fp32"), Precision.FP32)) as session:
    session.run({{"image": np.zeros((1, 32, 32, 1), np.uint8)}})
"""
    assert run(code, tmp_path) == "[] []"
    assert not (tmp_path / "intel").exists()  # where the answer to its question would be kept


def test_what_the_program_loaded_itself_stays(tmp_path: Path) -> None:
    code = """
sys.modules["openvino_telemetry"] = mine = type(sys)("openvino_telemetry")
from vggdeploy.system.optional import require
require("openvino", to="try", extra="cpu")
assert sys.modules["openvino_telemetry"] is mine
"""
    assert run(code, tmp_path) == "[] ['openvino_telemetry']"
