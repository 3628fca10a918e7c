"""Manifests for Kubernetes: they fit its schemas, and say of memory what was measured."""

from __future__ import annotations

import copy
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import IncompatibleError, UsageError
from vggdeploy.package import memory
from vggdeploy.package.base import Order
from vggdeploy.package.kserve import BODIES, DRAIN, TIMEOUT, package_kserve, to_yaml
from vggdeploy.package.memory import MIB
from vggdeploy.package.oci import BUNDLE, EVERYWHERE, PORT
from vggdeploy.serve.settings import Settings

VERSION = kubernetes_validate.latest_version()


@pytest.fixture(scope="module")
def package(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kserve") / "package"
    package_kserve(
        Order(
            bundle=Bundle.open(bundle_dir), output=root, variants=("onnx-fp32",), image="registry.example.com/digits:1"
        )
    )
    return root


@pytest.fixture(scope="module")
def parts(package: Path) -> dict[str, Any]:
    documents = list(yaml.safe_load_all((package / "deployment.yaml").read_text()))
    return {d["kind"]: d for d in documents} | {
        "InferenceService": yaml.safe_load((package / "inferenceservice.yaml").read_text())
    }


def pod_of(service: dict[str, Any]) -> dict[str, Any]:
    """The predictor as a pod of Kubernetes: what KServe makes of it."""
    spec = {k: v for k, v in service["spec"]["predictor"].items() if k not in ("minReplicas", "maxReplicas")}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}


pytestmark = pytest.mark.late


def test_every_part_fits_the_schemas_of_kubernetes(parts: dict[str, Any]) -> None:
    assert sorted(parts) == ["Deployment", "InferenceService", "PodDisruptionBudget", "Service"]
    for kind in ("Deployment", "Service", "PodDisruptionBudget"):
        kubernetes_validate.validate(parts[kind], VERSION, strict=True)
    kubernetes_validate.validate(pod_of(parts["InferenceService"]), VERSION, strict=True)
    wrong = copy.deepcopy(parts["Deployment"])
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_both_run_the_same_pod_without_privileges(parts: dict[str, Any]) -> None:
    pod = parts["Deployment"]["spec"]["template"]["spec"]
    assert pod == pod_of(parts["InferenceService"])["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    own = container["securityContext"]
    assert (own["readOnlyRootFilesystem"], own["allowPrivilegeEscalation"]) == (True, False)
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert {probe for probe in container if probe.endswith("Probe")} == {
        "startupProbe",
        "readinessProbe",
        "livenessProbe",
    }


def test_a_selector_finds_its_pods_and_a_drain_leaves_one(parts: dict[str, Any]) -> None:
    labels = parts["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        parts["Deployment"]["spec"]["selector"]["matchLabels"],
        parts["Service"]["spec"]["selector"],
        parts["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert parts["PodDisruptionBudget"]["spec"]["minAvailable"] == 1
    assert parts["Deployment"]["spec"]["replicas"] == 2
    pod = parts["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 2 * DRAIN + TIMEOUT


def test_the_pod_asks_for_what_the_server_took(package: Path, parts: dict[str, Any]) -> None:
    (container,) = parts["Deployment"]["spec"]["template"]["spec"]["containers"]
    told = re.search(r"^# memory: ([\d.]+) MiB were the peak", (package / "deployment.yaml").read_text(), re.MULTILINE)
    assert told is not None
    asked, limit = (int(container["resources"][kind]["memory"].removesuffix("Mi")) for kind in ("requests", "limits"))
    assert 0 <= asked - float(told[1]) < 16
    assert 0 <= limit - 1.5 * float(told[1]) - BODIES / MIB < 16
    assert Settings(bundle="x").body_budget == BODIES  # what uploads may take cannot end the pod
    assert float(told[1]) > 40  # no Python with ONNX Runtime takes less: it was the server that was looked at


def test_more_memory_that_a_server_takes_is_seen(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement is of the process that serves: what it holds beside is in it."""
    bundle = Bundle.open(bundle_dir)
    variant = bundle.manifest.variant("onnx-fp32")
    plain = memory.measure_server(bundle, variant, threads=1, batch=4)
    monkeypatch.setattr(memory, "_SERVE", f"held = b'x' * (200 * 2**20)\n{memory._SERVE}")
    assert memory.measure_server(bundle, variant, threads=1, batch=4).peak - plain.peak > 150 * MIB


def test_the_server_that_is_measured_ends_with_a_command_that_is_killed(bundle_dir: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom vggdeploy.bundle import Bundle\nfrom vggdeploy.package import memory\n"
        "bundle = Bundle.open(sys.argv[1])\n"
        "memory._ask = lambda *a: (Path(sys.argv[2]).touch(), __import__('time').sleep(60))\n"
        "memory.measure_server(bundle, bundle.manifest.variant('onnx-fp32'), threads=1, batch=1)\n"
    )
    asked = tmp_path / "asked"
    with subprocess.Popen([sys.executable, "-c", code, str(bundle_dir), str(asked)]) as command:
        wait_until(asked.exists)
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
        assert children
        command.kill()
    wait_until(lambda: not any(Path("/proc", child, "cmdline").is_file() for child in children))


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_arguments_are_those_of_a_server_that_starts_and_drains(
    package: Path, parts: dict[str, Any], tmp_path: Path
) -> None:
    (container,) = parts["Deployment"]["spec"]["template"]["spec"]["containers"]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    places = {BUNDLE: str(package / "image/bundle"), EVERYWHERE: "127.0.0.1", str(PORT): str(port)}
    command = [sys.executable, "-m", "vggdeploy", *(places.get(word, word) for word in container["args"])]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        ready = f"http://127.0.0.1:{port}{container['readinessProbe']['httpGet']['path']}"
        for _ in range(600):
            try:
                with urllib.request.urlopen(ready, timeout=3) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_server_that_does_not_start_is_no_measurement(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VGGDEPLOY_POLICY", str(tmp_path / "none.toml"))  # the server opens nothing then
    with pytest.raises(IncompatibleError, match=r"did not start here, so nothing was measured: .*policy"):
        package_kserve(Order(bundle=Bundle.open(bundle_dir, trust=()), output=tmp_path / "p", variants=("onnx-fp32",)))
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"name": "Digits"}, "no name of Kubernetes"),
        ({"name": "a\n- b"}, "no name of Kubernetes"),
        ({"image": "x\nprivileged: true"}, "no reference of an image"),
        ({"image": "-x"}, "no reference of an image"),
        ({"instances": 0}, "number of pods"),
        ({"max_batch": 0}, "takes batches up to"),
    ],
)
def test_what_would_become_another_manifest_is_refused(
    more: dict[str, Any], told: str, bundle_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told):
        package_kserve(Order(bundle=Bundle.open(bundle_dir), output=tmp_path / "p", variants=("onnx-fp32",), **more))


@pytest.mark.parametrize("text", ["yes", "1e3", "a: b", "- x", "#", "", "\n", "é\u2028", "null", "{}", "'", '"'])
def test_yaml_reads_every_string_back(text: str) -> None:
    value = {"a": text, "list": [{"b": text, "c": {"d": [text]}}, {"b": "x"}], "empty": [], "n": 1, "t": True}
    assert yaml.safe_load(to_yaml(value)) == value


def test_an_image_means_nothing_to_another_target(bundle_dir: Path, tmp_path: Path) -> None:
    assert run(["package", str(bundle_dir), "--target", "oci", "-o", str(tmp_path / "x"), "--image", "i"]) == 2
