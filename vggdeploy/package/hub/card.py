"""The card of a bundle's repository: verdicts, accuracy with its interval, latency, data, licence, as the manifest has them.

Its head is YAML as https://huggingface.co/docs/hub/model-cards has it; every string in it is written as JSON, which YAML reads.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from typing import Any

from vggdeploy._version import __version__
from vggdeploy.bundle import REFERENCE, Bundle, Manifest, Variant
from vggdeploy.data.specs import DATASETS
from vggdeploy.errors import one_line
from vggdeploy.package.hub.place import Place
from vggdeploy.parity.bounds import clopper_pearson

CARD_NAME = "README.md"
BOM_NAME = "bom.cdx.json"
_TWO_SIDED = 0.975  # each bound of a two-sided interval of 95%
_PAIR = re.compile(r"\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}")
_MEASURED = 12  # rows of latency
_SPECIAL = str.maketrans({letter: f"\\{letter}" for letter in "\\`*_[]|#<>!~"})


def model_card(bundle: Bundle, place: Place, *, licence: str = "", signed: bool = False) -> str:
    """The card in Markdown."""
    manifest = bundle.manifest
    lines = [*_head(manifest, licence), "", f"# {_text(manifest.name)}", ""]
    lines.append(
        f"{_text(manifest.spec.title)}, exported and proven by vggdeploy {__version__}. Every file was run on the same images "
        "as the FP32 PyTorch model, and compared with what that computed; what is below stands in `manifest.json`."
    )
    lines += [
        "",
        "```sh",
        f"vggdeploy pull {place} -o {manifest.digest[:12]}",
        f"vggdeploy verify {manifest.digest[:12]}",
        "```",
        "",
    ]
    lines += _verdicts(manifest)
    lines += _accuracy(manifest)
    lines += _latency(manifest)
    lines += _data(manifest, licence)
    lines += ["", "## Where it comes from", ""]
    lines.append(f"- digest of the manifest, which has the SHA-256 of every file: `{manifest.digest}`")
    lines.append(
        f"- signature: {'`model.sig` (OpenSSF Model Signing); a pull checks it by your policy' if signed else 'none'}"
    )
    lines.append(f"- bill of materials: [`{BOM_NAME}`]({BOM_NAME}) (CycloneDX 1.6)")
    if manifest.origin:
        lines.append(
            f"- cut from {_text(manifest.origin.bundle)} (`{manifest.origin.digest[:12]}`), whose FP32 reference stayed there"
        )
    return "\n".join(lines) + "\n"


def _head(manifest: Manifest, licence: str) -> list[str]:
    task = "image-classification" if manifest.spec.classes else "image-feature-extraction"
    fields: dict[str, Any] = {
        "library_name": "vggdeploy",
        "pipeline_tag": task,
        "tags": ["vgg", "vggdeploy", *_formats(manifest)],
    }
    if licence:
        fields["license"] = licence
    known = manifest.reference_accuracy
    if known:
        metric = {"type": "accuracy", "value": round(known.hits / known.samples, 6), "verified": False}
        data = {"type": known.dataset, "name": known.dataset, "split": "test"}
        results = [{"task": {"type": task}, "dataset": data, "metrics": [metric]}]
        fields["model-index"] = [{"name": manifest.name, "results": results}]
    return ["---", *(f"{name}: {_yaml(value)}" for name, value in fields.items()), "---"]


def _yaml(value: Any) -> str:
    """JSON; what JSON writes as a pair of surrogates stands as itself, which is all that YAML takes."""
    return _PAIR.sub(lambda found: str(json.loads(f'"{found[0]}"')), json.dumps(value))


def _formats(manifest: Manifest) -> list[str]:
    return sorted({variant.format for variant in manifest.variants if variant.format != "checkpoint"})


def _verdicts(manifest: Manifest) -> Iterator[str]:
    yield from (
        "## Proven",
        "",
        "| variant | verdict | on | images | relative L2 | top-1 flips, 95% bound |",
        "|---|---|---|---|--:|--:|",
    )
    for variant in manifest.variants:
        yield f"| {_text(variant.name)} | {_text(_verdict(variant))} | {' | '.join(_proof(variant))} |"
    reasons = [(v.name, reason) for v in manifest.variants if v.parity for reason in v.parity.reasons]
    yield from ("", *(f"- {_text(name)}: {_text(reason)}" for name, reason in reasons))


def _verdict(variant: Variant) -> str:
    """Both verdicts, where they are not the same: of the outputs, and of the bound on changed answers."""
    if variant.name == REFERENCE:
        return "reference"
    proof = variant.parity
    apart = proof is not None and proof.bounds not in (None, proof.numerical)
    return (
        f"{variant.verdict}: numerical {proof.numerical}, bounds {proof.bounds}"
        if proof and apart
        else str(variant.verdict)
    )


def _proof(variant: Variant) -> tuple[str, str, str, str]:
    proof = variant.parity
    if proof is None:
        return "–", "–", "–", "–"
    worst = max((output.relative_l2 for output in proof.outputs), default=None)
    flips = proof.flips
    share = f"{flips.flips} of {flips.samples:,}, ≤ {flips.upper:.2%}" if flips else "–"
    return (
        _text(f"{proof.backend}, {proof.device}"),
        _text(proof.data or str(proof.source)),
        "–" if worst is None else f"{worst:.1e}",
        share,
    )


def _accuracy(manifest: Manifest) -> Iterator[str]:
    known = manifest.reference_accuracy
    yield from ("", "## Accuracy", "")
    if known is None:
        yield "Not measured: no labelled test images were there when it was exported."
        return
    low, high = clopper_pearson(known.hits, known.samples, confidence=_TWO_SIDED)
    yield (
        f"The FP32 reference has {known.hits:,} of {known.samples:,} test images of {_text(known.dataset)} right: "
        f"{known.hits / known.samples:.2%}, {low:.2%} to {high:.2%} (two-sided, Clopper–Pearson)."
    )


def _latency(manifest: Manifest) -> Iterator[str]:
    yield from ("", "## Latency", "")
    rows = [(v.name, m) for v in manifest.variants for m in v.measured]
    if not rows:
        yield "None is on record. Measure it where it will run: `vggdeploy bench BUNDLE --record`."
        return
    yield from ("| variant | machine | threads | batch | p50 ms |", "|---|---|--:|--:|--:|")
    for name, measured in rows[:_MEASURED]:
        yield f"| {_text(name)} | {_text(measured.machine)} | {measured.threads} | {measured.batch} | {measured.p50_ms:.3g} |"


def _data(manifest: Manifest, licence: str) -> Iterator[str]:
    yield from ("", "## Data and licence", "")
    known = DATASETS.get(manifest.dataset)
    if known:
        yield f"- trained on {_text(known.title)}; its licence: {_text(known.license)}"
    else:
        yield f"- trained on: {_text(manifest.dataset) if manifest.dataset else 'not recorded'}"
    yield f"- licence of these weights: {_text(licence) if licence else 'not stated'}"


def _text(text: str) -> str:
    """Markdown that shows the text as it is: names may come from anybody."""
    return html.escape(one_line(text), quote=False).translate(_SPECIAL)
