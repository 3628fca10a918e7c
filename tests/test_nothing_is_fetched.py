"""Nothing is fetched, looked up or reported at run time: whole commands where every packet is seen and none gets anywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.late

WATCH = Path(__file__).parent / "attacks/no_network.py"
# By these some packages know a CI, and keep their reports back.
_CI = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL", "NNCF_CI", "VGGDEPLOY_POLICY")
_TOLD = re.compile("TELEMETRY|USAGE_STATS|PYTEST")
_SERVE = """
import re, subprocess, sys, urllib.request
from pathlib import Path
command = [sys.executable, "-m", "vggdeploy", "serve", sys.argv[1], "--port", "0"]
server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
url = next(found[0] for line in server.stderr if (found := re.search(r"http://127[0-9.:]+", line)))
answer = lambda path, data=None: urllib.request.urlopen(url + path, data).read()
for path in ("/", "/metrics", "/v2", "/v2/health/ready"):
    assert answer(path)
for _ in range(3):
    assert b"label" in answer("/classify", Path(sys.argv[2]).read_bytes())
server.terminate()
server.communicate(timeout=60)
"""


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("unshare (util-linux) and ip (iproute2) are not installed")
    done = subprocess.run(["unshare", "-rn", "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this system allows no network namespace: {done.stderr.strip()}")


def sent(*command: object, home: Path, code: int = 0, quiet: bool = True) -> list[str]:
    """Whom a command spoke to, or tried to. A ``quiet`` one leaves nothing hidden in the user's home either."""
    environment = {k: v for k, v in os.environ.items() if k not in _CI and not _TOLD.search(k)}
    done = subprocess.run(
        ["unshare", "-rn", sys.executable, WATCH, home / "sent.json", *map(str, command)],
        env=environment | {"HOME": str(home)}, cwd=home, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    watched = json.loads((home / "sent.json").read_text())
    assert watched["lost"] == 0
    assert not quiet or list(home.glob(".*")) == []
    found: list[str] = watched["seen"]
    return found


def vggdeploy(*arguments: object, home: Path, code: int = 0) -> list[str]:
    return sent(sys.executable, "-m", "vggdeploy", *arguments, home=home, code=code)


CONNECTS = "import socket; socket.create_connection(('93.184.215.14', 443), 2)"
LEFT = "(sleep 0.5; getent hosts example.org) & true"


@pytest.mark.parametrize(
    ("command", "code", "word"),
    [
        ((sys.executable, "-c", CONNECTS), 1, "TCP 93.184.215.14 port 443"),
        (("getent", "hosts", "example.org"), 2, "example.org"),  # no line of it is Python
        (("sh", "-c", LEFT), 0, "example.org"),  # a child that stays
        ((sys.executable, "-c", "import openvino"), 0, "www.google-analytics.com"),
    ],
    ids=["connection", "native", "child", "openvino"],
)
def test_the_watch_sees_who_calls_home(command: tuple[str, ...], code: int, word: str, tmp_path: Path) -> None:
    if word == "www.google-analytics.com":
        pytest.importorskip("openvino_telemetry")
    assert any(word in line for line in sent(*command, home=tmp_path, code=code, quiet=False))


def test_onnx_runtime_would_keep_a_number_of_this_machine(bundle_dir: Path, tmp_path: Path) -> None:
    """What the commands below do not leave behind. Its report itself goes out some time later, if the process still lives."""
    if tuple(map(int, version("onnxruntime").split(".")[:2])) < (1, 29):
        pytest.skip("this version of ONNX Runtime has no telemetry")
    code = f"import onnxruntime; onnxruntime.InferenceSession({str(next(bundle_dir.rglob('*.onnx')))!r})"
    sent(sys.executable, "-c", code, home=tmp_path, quiet=False)
    assert list(tmp_path.rglob("deviceid"))


COMMANDS = {
    "inspect": "inspect {bundle}",
    "sbom": "inspect {bundle} --sbom",
    "predict": "predict {bundle} {image}",
    "predict-torchscript": "predict {bundle} {image} --backend torchscript",
    "predict-torch": "predict {bundle} {image} --backend torch",
    "embed": "embed {bundle} {image} --output logits -o vectors.npy",
    "embed-parquet": "embed {bundle} {image} --output logits -o vectors.parquet",
    "verify": "verify {bundle}",
    "bench": "bench {bundle} --backend onnxruntime --backend torchscript --seconds 0.05 --rounds 3",
    "loadgen": "bench {bundle} --backend onnxruntime --scenario single_stream --seconds 0.2",
    "evaluate": "evaluate {bundle}",
    "export": "export {checkpoint} -o exported",
    "train": "train --arch vgg11_bn --width 0.125 --dataset digits --image-size 32 --epochs 1 -o trained",
    "slim": "package {bundle} --target slim -o slim",
    "triton": "package {bundle} --target triton -o triton --name digits",
    "oci": "package {bundle} --target oci -o oci --serve",
    "cpp": "package {bundle} --target cpp -o cpp",
    "doctor": "doctor --self-test",
    "sign": "sign {own} --new-key release.pem",
    "build": "build {own} --engine tensorrt-rtx --target sm89",
    "search": "search {bundle} -o found --max-accuracy-drop 50 --budget 1 --epochs 0 --samples 50",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_speaks_to_nobody(
    name: str, bundle_dir: Path, own_bundle: Path, checkpoint: Path, digit_png: Path, tmp_path: Path
) -> None:
    places = {"bundle": bundle_dir, "own": own_bundle, "checkpoint": checkpoint, "image": digit_png}
    home = tmp_path / "home"
    home.mkdir()
    assert vggdeploy(*COMMANDS[name].format(**places).split(), home=home) == []


def test_openvino_and_int8_speak_to_nobody(own_bundle: Path, digit_png: Path, tmp_path: Path) -> None:
    assert vggdeploy("optimize", own_bundle, "--step", "openvino-fp32,int8", home=tmp_path) == []
    for variant in ("openvino-fp32", "onnx-int8"):
        assert vggdeploy("predict", own_bundle, digit_png, "--variant", variant, home=tmp_path) == []


def test_a_report_is_drawn_without_asking_anybody(bundle_dir: Path, tmp_path: Path) -> None:
    """vl-convert and altair have a font and a library to fetch, if one lets them."""
    with (tmp_path / "verify.json").open("w") as file:
        arguments = [sys.executable, "-m", "vggdeploy", "verify", bundle_dir, "--json"]
        subprocess.run(arguments, stdout=file, check=True)
    for name in ("report.html", "report.md", "report.csv"):
        assert vggdeploy("report", "verify.json", "-o", name, home=tmp_path) == []


def test_a_server_speaks_to_its_loopback_alone(bundle_dir: Path, digit_png: Path, tmp_path: Path) -> None:
    assert sent(sys.executable, "-c", _SERVE, bundle_dir, digit_png, home=tmp_path) == []


def test_a_ray_cluster_of_this_machine_asks_which_cloud_it_is_on_and_speaks_to_nobody_else(
    bundle_dir: Path, digit_png: Path, tmp_path: Path
) -> None:
    """Ray 2.60 does so before it sees that its usage reports are off (`ray._common.usage.usage_lib`), on addresses that lead no
    farther than the machine's host."""
    pytest.importorskip("ray")
    job = ["-m", "vggdeploy", "embed", bundle_dir, digit_png, "--output", "logits", "-o", "vectors", "--ray", "local"]
    seen = sent(sys.executable, *job, home=tmp_path, quiet=False)
    assert [line for line in seen if "169.254.169.254" not in line and "metadata.google.internal" not in line] == []


def test_the_demo_speaks_to_nobody(tmp_path: Path) -> None:
    assert vggdeploy("demo", "--seconds", "0.05", home=tmp_path) == []
