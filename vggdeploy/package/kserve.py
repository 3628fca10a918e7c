"""Manifests for Kubernetes around a container of the server: KServe's InferenceService, and a plain Deployment of the same pod.

The memory that a pod asks for is measured: the server is started here, and answers full batches. Fields are those of
https://kubernetes.io/docs/reference/kubernetes-api/ and https://kserve.github.io/website/docs/reference/crd-api.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from vggdeploy._version import __version__
from vggdeploy.bundle import Variant
from vggdeploy.errors import UsageError, counted, one_line
from vggdeploy.package.base import Made, Order, chosen_variant, finish, package_directory
from vggdeploy.package.memory import MIB, Measured, measure_server
from vggdeploy.package.oci import BUNDLE, EVERYWHERE, PORT, RUNTIMES, package_oci

REPLICAS = 2
THREADS = 1  # a pod; more pods use more cores
MAX_BATCH = 8
USER = 10001  # of the image
DRAIN = 5  # seconds in which a pod that is about to end still answers, before and after SIGTERM
TIMEOUT = 30  # seconds a request may take
_SPARE = 1.5  # of the measured peak, below the limit; the kernel ends what needs more
BODIES = 512 * MIB  # that the server lets all requests under way take together
_STEP = 16  # MiB
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?")  # RFC 1035; KServe makes longer names of it
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._:/@-]{0,254}")


def package_kserve(order: Order) -> Made:
    """Write ``inferenceservice.yaml``, ``deployment.yaml`` (with Service and PodDisruptionBudget), and ``image/``, of which the
    image is built.

    Raises:
        UsageError: a name or an image that Kubernetes does not take; a variant for a GPU.
        IncompatibleError: the server cannot be started here, so that nothing can be measured.
    """
    variant = chosen_variant(order, tuple(RUNTIMES), "the container")
    name = order.name or _named(order.bundle.manifest.name)
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is no name of Kubernetes", "lower-case letters, digits and '-', 50 at most: --name vgg"
        )
    image = order.image or f"vggdeploy-{name}:{order.bundle.manifest.digest[:12]}"
    if not _IMAGE.fullmatch(image):
        raise UsageError(f"'{image}' is no reference of an image", "for example --image registry.example.com/vgg:1")
    replicas = REPLICAS if order.instances is None else order.instances
    if replicas < 1:
        raise UsageError(f"the number of pods cannot be {replicas}", "give --instances of at least 1")
    batch = min(order.max_batch or MAX_BATCH, variant.batch.max)
    if order.max_batch is not None and not 1 <= order.max_batch <= variant.batch.max:
        raise UsageError(
            f"{variant.name} takes batches up to {variant.batch.max}", f"give --max-batch 1 to {variant.batch.max}"
        )
    measured = measure_server(order.bundle, variant, threads=THREADS, batch=batch)
    pod = pod_spec(image, batch, measured)
    with package_directory(order) as root:
        oci = replace(order, output=root / "image", serve=True, overwrite=False, name=None, image=None)
        package_oci(replace(oci, max_batch=None, instances=None).with_variant(variant.name))
        head = _head(order, variant, measured)
        (root / "inferenceservice.yaml").write_text(head + to_yaml(inference_service(name, pod, replicas)), "utf-8")
        parts = [deployment(name, pod, replicas), service(name), budget(name, replicas)]
        (root / "deployment.yaml").write_text(head + "---\n".join(map(to_yaml, parts)), "utf-8")
        package = finish(root, order, "kserve", [variant])
    where = order.output
    return Made(
        package,
        next=(
            f"docker build -t {image} {where}/image && docker push {image}",
            f"kubectl apply -f {where}/inferenceservice.yaml   # with KServe; without: {where}/deployment.yaml",
        ),
        notes=(
            f"a server with {counted(THREADS, 'thread')} and batches of {batch} took {measured.peak / MIB:.0f} MiB here at "
            f"the peak: the pod asks for {_mebibytes(measured.peak)}, and may have "
            f"{_mebibytes(measured.peak * _SPARE + BODIES)} with all that callers send",
        ),
    )


def _named(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:50].strip("-") or "vgg"


def _mebibytes(size: float) -> str:
    """Rounded up."""
    return f"{math.ceil(size / MIB / _STEP) * _STEP}Mi"


def _head(order: Order, variant: Variant, measured: Measured) -> str:
    manifest = order.bundle.manifest
    about = one_line(f"{manifest.name} ({manifest.digest[:12]}), {variant.name}, by vggdeploy {__version__}")
    return (
        f"# {about}\n"
        f"# memory: {measured.peak / MIB:.1f} MiB were the peak of the server while it answered {measured.requests} "
        f"requests of {counted(measured.batch, 'image')},\n"
        f"# with {counted(measured.threads, 'thread')}, on {one_line(measured.cpu)}\n"
    )


def pod_spec(image: str, batch: int, measured: Measured) -> dict[str, Any]:
    """The pod, which may write to nothing but a small volume in memory, and runs as nobody."""
    probe = {"path": "/v2/health/ready", "port": PORT}
    arguments = ["serve", BUNDLE, "--host", EVERYWHERE, "--port", str(PORT), "--threads", str(measured.threads)]
    arguments += ["--max-batch", str(batch), "--drain", str(DRAIN), "--timeout", str(TIMEOUT)]
    container = {
        "name": "kserve-container",
        "image": image,
        "args": arguments,
        # One connection a pod is what KServe's own proxies count; the token is there only where somebody made the secret.
        "env": [
            {"name": "PROTOCOL", "value": "v2"},
            {
                "name": "VGGDEPLOY_TOKEN",
                "valueFrom": {"secretKeyRef": {"name": "vggdeploy-token", "key": "token", "optional": True}},
            },
        ],
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "resources": {
            "requests": {"cpu": str(measured.threads), "memory": _mebibytes(measured.peak)},
            "limits": {"cpu": str(measured.threads), "memory": _mebibytes(measured.peak * _SPARE + BODIES)},
        },
        "startupProbe": {"httpGet": probe, "periodSeconds": 2, "failureThreshold": 60, "timeoutSeconds": 3},
        "readinessProbe": {"httpGet": probe, "periodSeconds": 5, "failureThreshold": 2, "timeoutSeconds": 3},
        "livenessProbe": {
            "httpGet": {"path": "/v2/health/live", "port": PORT},
            "periodSeconds": 10, "failureThreshold": 6, "timeoutSeconds": 5,
        },
        # Until every proxy knows that the pod ends, requests still come.
        "lifecycle": {"preStop": {"exec": {"command": ["python", "-c", f"import time; time.sleep({DRAIN})"]}}},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108  # the image's cache of proofs
    }  # fmt: skip
    return {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 2 * DRAIN + TIMEOUT + 5,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}],
    }  # fmt: skip


def _meta(name: str) -> dict[str, Any]:
    return {"name": name, "labels": _labels(name)}


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "vggdeploy"}


def inference_service(name: str, pod: dict[str, Any], replicas: int) -> dict[str, Any]:
    """KServe's own resource. Its deployments are plain ones: Knative takes no ``lifecycle``."""
    annotations = {"serving.kserve.io/deploymentMode": "RawDeployment"}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {**_meta(name), "annotations": annotations},
        "spec": {"predictor": {"minReplicas": replicas, "maxReplicas": replicas * 4, **pod}},
    }


def deployment(name: str, pod: dict[str, Any], replicas: int) -> dict[str, Any]:
    """The same pod without KServe; a new version comes pod by pod, and none goes before its successor is ready."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta(name),
        "spec": {
            "replicas": replicas,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
            "template": {"metadata": {"labels": _labels(name)}, "spec": pod},
        },
    }


def service(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(name),
        "spec": {
            "selector": {"app.kubernetes.io/name": name},
            "ports": [{"name": "http", "port": 80, "targetPort": PORT, "protocol": "TCP"}],
        },
    }


def budget(name: str, replicas: int) -> dict[str, Any]:
    """What drains a node takes one pod at a time; of a single pod that is no protection, and a drain must not hang."""
    allowed = {"minAvailable": replicas - 1} if replicas > 1 else {"maxUnavailable": 1}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _meta(name),
        "spec": {**allowed, "selector": {"matchLabels": {"app.kubernetes.io/name": name}}},
    }


def to_yaml(value: dict[str, Any]) -> str:
    """YAML whose scalars are JSON: what reads YAML reads every string as one."""
    return "".join(f"{line}\n" for line in _lines(value, ""))


def _lines(value: Any, indent: str) -> Iterator[str]:
    for key, part in value.items():
        if isinstance(part, dict) and part:
            yield f"{indent}{key}:"
            yield from _lines(part, f"{indent}  ")
        elif isinstance(part, list) and any(isinstance(item, dict) for item in part):
            yield f"{indent}{key}:"
            for item in part:
                first, *rest = _lines(item, f"{indent}  ")
                yield f"{indent}- {first.removeprefix(f'{indent}  ')}"
                yield from rest
        else:
            yield f"{indent}{key}: {json.dumps(part)}"
