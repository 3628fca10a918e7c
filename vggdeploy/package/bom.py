"""The bill of materials of a bundle, as CycloneDX 1.6 in JSON: the model and its card, each variant, each file, the data set.

It says what the manifest says, and the manifest's digest gives the same document each time. Field names are CycloneDX's:
https://cyclonedx.org/docs/1.6/json/. Names of properties begin with ``vggdeploy:``.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from vggdeploy._version import __version__
from vggdeploy.bundle import Bundle, FileRecord, Variant
from vggdeploy.bundle.manifest import Manifest, is_in
from vggdeploy.data.specs import DATASETS
from vggdeploy.errors import counted
from vggdeploy.package.base import variant_files
from vggdeploy.records import ParityRecord

Json = dict[str, Any]
_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_LICENCE = "Apache-2.0"  # of vggdeploy itself


def bill_of_materials(bundle: Bundle) -> Json:
    """The document. Licences stand where they are known: of the data sets that have a name here, and of vggdeploy."""
    manifest = bundle.manifest
    components = [
        *(_variant(manifest, variant) for variant in manifest.variants),
        *map(_file, manifest.files),
        *([_dataset(manifest.dataset)] if manifest.dataset else []),
        *(_tool(name, version) for name, version in sorted(_tools(manifest))),
    ]
    dated = {"timestamp": manifest.created} if _UTC.fullmatch(manifest.created) else {}
    writer = {"type": "application", "name": "vggdeploy", "version": __version__, "licenses": _licences(_LICENCE)}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, manifest.digest)}",
        "version": 1,
        "metadata": {**dated, "tools": {"components": [writer]}, "component": _model(manifest)},
        "components": components,
        "dependencies": [
            {"ref": "model", "dependsOn": [c["bom-ref"] for c in components if c["type"] != "library"]},
            *({"ref": f"variant:{v.name}", "dependsOn": _files(bundle, v)} for v in manifest.variants),
        ],
    }


def _files(bundle: Bundle, variant: Variant) -> list[str]:
    """The files of a variant; variants may share one."""
    inside = [r.path for r in bundle.manifest.files if is_in(r.path, variant.path)]
    return [f"file:{path}" for path in dict.fromkeys((*inside, *variant_files(bundle, variant)))]


def _model(manifest: Manifest) -> Json:
    """What the bundle holds in several variants: the network, its data, and what the reference had right."""
    spec, prepare = manifest.spec, manifest.preprocess
    parameters = {
        # Weights from elsewhere come without a word on how they were trained.
        **({"approach": {"type": "supervised"}} if spec.classes and manifest.dataset else {}),
        "task": "image classification" if spec.classes else "feature extraction",
        "architectureFamily": "VGG",
        "modelArchitecture": spec.title,
        **({"datasets": [{"ref": f"data:{manifest.dataset}"}]} if manifest.dataset else {}),
        "inputs": [{"format": str(manifest.input)}],
        "outputs": [{"format": str(output)} for output in manifest.outputs],
    }
    known, origin = manifest.reference_accuracy, manifest.origin
    metrics = []
    if known:
        metrics.append(_metric("accuracy", known.hits / known.samples, f"{known.dataset}, {known.samples} test images"))
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest.name,
        "version": manifest.digest[:12],
        "description": f"a vggdeploy bundle of {spec.title}",
        "modelCard": {
            "modelParameters": parameters,
            **({"quantitativeAnalysis": {"performanceMetrics": metrics}} if metrics else {}),
        },
        "properties": _properties(
            digest=manifest.digest,
            **{f"preprocess:{name}": getattr(prepare, name) for name in prepare.__struct_fields__},
            **({"origin:bundle": origin.bundle, "origin:digest": origin.digest} if origin else {}),
        ),
    }


def _variant(manifest: Manifest, variant: Variant) -> Json:
    proof = variant.parity
    metrics = list(_metrics(proof)) if proof else []
    return {
        "type": "machine-learning-model",
        "bom-ref": f"variant:{variant.name}",
        "name": variant.name,
        "hashes": _hashes(manifest.sha256(variant.path)),
        "modelCard": {
            "modelParameters": {"architectureFamily": "VGG", "modelArchitecture": manifest.spec.title},
            **({"quantitativeAnalysis": {"performanceMetrics": metrics}} if metrics else {}),
        },
        "properties": _properties(
            format=variant.format,
            precision=variant.precision,
            batch=f"{variant.batch.min} to {variant.batch.max}",
            verdict=variant.verdict,
            **_proven(proof),
            **_made(variant),
        ),
    }


def _metrics(proof: ParityRecord) -> Iterator[Json]:
    """Of a variant beside the FP32 reference; bounds are one-sided, of 95% each."""
    for output in proof.outputs:
        yield _metric("relative L2 distance from the reference", output.relative_l2, output.output)
    if flips := proof.flips:
        shown = f"{counted(flips.samples, 'image')}"
        yield _metric("share of top-1 flips", flips.flips / max(flips.samples, 1), shown, (flips.lower, flips.upper))
    if proof.candidate_accuracy is not None:
        yield _metric("accuracy", proof.candidate_accuracy, proof.data)
    if drop := proof.drop:
        yield _metric("accuracy drop", drop.drop, f"{counted(drop.samples, 'image')}", (drop.lower, drop.upper))


def _proven(proof: ParityRecord | None) -> Json:
    if proof is None:
        return {}
    return {
        "proof:backend": proof.backend,
        "proof:device": proof.device,
        "proof:images": proof.source,
        "proof:reasons": proof.reasons,
    }


def _made(variant: Variant) -> Json:
    build, quantised = variant.build, variant.quantisation
    found: Json = {}
    if build:
        found = {
            "build:library": f"{build.library} {build.version}",
            "build:source": build.source,
            "build:source-sha256": build.source_sha256,
            "build:targets": build.targets,
        }
    if quantised:
        found |= {
            "quantisation:method": quantised.method,
            "quantisation:data": f"{quantised.data}, {counted(quantised.images, 'image')}",
        }
    return found


def _tools(manifest: Manifest) -> set[tuple[str, str]]:
    """Name and version of what took part in exporting, building and quantising."""
    records = [r for v in manifest.variants for r in (v.build, v.quantisation) if r]
    return {*manifest.tools.items(), *((r.library, r.version) for r in records)}


def _tool(name: str, version: str) -> Json:
    purl = f"pkg:pypi/{quote(name.lower().replace('_', '-'), safe='')}@{quote(version, safe='')}"
    return {
        "type": "library",
        "bom-ref": f"tool:{name}@{version}",
        "name": name,
        "version": version,
        **({"purl": purl} if name and version else {}),
        **({"licenses": _licences(_LICENCE)} if name == "vggdeploy" else {}),
    }


def _dataset(name: str) -> Json:
    """By its name alone: what a stranger's manifest calls a folder is not looked at."""
    known = DATASETS.get(name)
    about = {"description": known.title} if known else {}
    licence = known.license.replace(" ", "-") if known and known.license != "unknown" else ""
    return {
        "type": "data",
        "bom-ref": f"data:{name}",
        "name": name,
        "data": [{"type": "dataset", "name": name, **about}],
        **({"licenses": _licences(licence)} if licence else {}),
    }


def _file(record: FileRecord) -> Json:
    return {"type": "file", "bom-ref": f"file:{record.path}", "name": record.path, "hashes": _hashes(record.sha256)}


def _hashes(sha256: str) -> list[Json]:
    return [{"alg": "SHA-256", "content": sha256}] if sha256 else []


def _licences(spdx: str) -> list[Json]:
    return [{"license": {"id": spdx}}]


def _metric(kind: str, value: float, over: str, bounds: tuple[float, float] | None = None) -> Json:
    interval = {"lowerBound": f"{bounds[0]:.6g}", "upperBound": f"{bounds[1]:.6g}"} if bounds else None
    return {
        "type": kind,
        "value": f"{value:.6g}",
        "slice": over,
        **({"confidenceInterval": interval} if interval else {}),
    }


def _properties(**values: Any) -> list[Json]:
    """CycloneDX's properties are text; those of several values stand once for each."""
    each = [(name, one) for name, value in values.items() for one in (value if isinstance(value, tuple) else (value,))]
    return [{"name": f"vggdeploy:{name}", "value": str(one)} for name, one in each]
