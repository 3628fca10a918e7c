"""Checks that the manifest describes the model that was trained: a comparison of outputs cannot show that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vggdeploy.bundle import Bundle, Manifest, ReferenceAccuracy
from vggdeploy.data.specs import same_names
from vggdeploy.parity.bounds import drawn_p_value
from vggdeploy.parity.metrics import SCORES, top1
from vggdeploy.parity.pixels import IMAGES, check_pixels
from vggdeploy.parity.reference import Array, Reference
from vggdeploy.preprocess import normalise, prepare
from vggdeploy.records import Check
from vggdeploy.spec import PreprocessSpec
from vggdeploy.system.optional import installed
from vggdeploy.types import Verdict
from vggdeploy.verify.samples import Samples

# Of the golden images those that Pillow's own decoding leaves as they are: no transparency, no 16 bits, no EXIF.
_PLAIN = ("grey.png", "rgb-portrait.png", "rgb-square.png", "rgb.png")
_CHECKPOINT = "the checkpoint in the bundle"
# Normalised values: a product and a sum in FP32 beside a difference and a quotient (of pixels up to 1, by std).
_ROUNDING = 1e-5
_ROWS = 4096  # scores that are read at once
_NEAR_TIES = 500  # images, of which FP32 on another machine may decide one in another way
_SURPRISING = 1e-3  # below this p-value a number of right answers is no accident


def check_manifest(bundle: Bundle, chosen: Samples | None) -> tuple[Check, ...]:
    """The manifest's network, preprocessing and labels beside the checkpoint's; labels beside the data set's classes, too.

    An application reads all three from the manifest: the weights may be right, and every answer of it wrong.

    Args:
        chosen: the images that the bundle is proven on, or None.
    """
    manifest = bundle.manifest
    trained = bundle.checkpoint()
    checks = [
        _check("network", _CHECKPOINT, _fields(manifest.spec, trained.spec)),
        _check("preprocessing", _CHECKPOINT, _fields(manifest.preprocess, trained.preprocess)),
        _check("labels", _CHECKPOINT, _labels(manifest.labels, trained.labels, "the checkpoint")),
    ]
    # Only the data set of the training has its classes in the model's order.
    if chosen is not None and chosen.dataset == manifest.dataset and same_names(chosen.classes, manifest.labels):
        checks.append(
            _check(
                "labels", chosen.dataset, _labels(manifest.labels, chosen.classes, f"the classes of {chosen.dataset}")
            )
        )
    return tuple(checks)


def measured_accuracy(dataset: str, reference: Reference) -> ReferenceAccuracy | None:
    """What the reference has right of its images; None without labels or class scores."""
    if reference.labels is None:
        return None
    hits = 0
    for start in range(0, len(reference.labels), _ROWS):
        part = slice(start, start + _ROWS)
        found = top1({name: reference.outputs[name][part] for name in SCORES if name in reference.outputs})
        if found is None:
            return None
        hits += int((found == reference.labels[part][: len(found)]).sum())
    return ReferenceAccuracy(dataset=dataset, samples=len(reference.labels), hits=hits)


def check_accuracy(manifest: Manifest, dataset: str, reference: Reference) -> Check:
    """The reference's accuracy here beside the one at export: weights, preprocessing and data set could have changed together.

    The same images have to be right again, but for one in `_NEAR_TIES`, of which the two best scores may be as near as FP32
    rounds. Of another number of images of the same data set, the smaller are drawn from the larger at random.
    """
    what, then = "the reference's accuracy", manifest.reference_accuracy
    now = measured_accuracy(dataset, reference)
    if then is None or now is None or then.dataset != dataset:
        why = (
            f"it was recorded on {then.dataset} when the bundle was exported" if then else "none was recorded at export"
        )
        return Check(what=what, against="the one at export", verdict=Verdict.UNPROVEN, reasons=(why,))
    if then.samples == now.samples:
        wrong = abs(then.hits - now.hits) > math.ceil(now.samples / _NEAR_TIES)
    else:
        few, many = sorted((then, now), key=lambda measured: measured.samples)
        wrong = drawn_p_value(few.hits, few.samples, many.hits, many.samples) < _SURPRISING
    reasons = [
        f"the reference has {now.hits:,} of {now.samples:,} images right, and had {then.hits:,} of {then.samples:,} at export: "
        "its weights, its preprocessing or the images changed"
    ]
    return _check(what, f"{then.hits:,} of {then.samples:,} images of {dataset} at export", reasons if wrong else [])


def check_preprocessing(bundle: Bundle) -> tuple[Check, ...]:
    """Training's way from an image to normalised values beside the runtime's, on this machine.

    First the golden arrays of every mode, format and orientation. Then torchvision's transforms with the settings of the
    training beside `prepare` and `normalise` with those of the manifest, on golden images. (A slim bundle has left the
    settings of the training behind: there the manifest's stand for both.)
    """
    manifest = bundle.manifest
    trained = manifest.preprocess if manifest.origin is not None else bundle.checkpoint().preprocess
    return check_pixels(), _check_transforms(manifest.preprocess, trained)


def _check_transforms(runtime: PreprocessSpec, trained: PreprocessSpec) -> Check:
    what, against = "preprocessing with the manifest's settings", "torchvision's transforms with those of the training"
    if not installed("torchvision"):
        return Check(
            what=what, against=against, verdict=Verdict.UNPROVEN, reasons=("torchvision is not installed here",)
        )
    from torchvision import transforms

    steps = transforms.Compose(
        [
            transforms.Resize(trained.resize, transforms.InterpolationMode(trained.interpolation)),
            transforms.CenterCrop(trained.crop),
            transforms.ToTensor(),
            transforms.Normalize(trained.mean, trained.std),
        ]
    )
    reasons = []
    for name in _PLAIN:
        with Image.open(IMAGES / name) as image:
            expected = steps(image.convert(trained.mode)).numpy()
        prepared = normalise(prepare(IMAGES / name, runtime)[None], runtime)[0]
        if wrong := _difference(prepared, expected, _ROUNDING / min(trained.std)):
            reasons.append(f"{name}: {wrong}")
    return _check(what, against, reasons)


def _difference(actual: Array, expected: Array, allowed: float) -> str:
    if actual.shape != expected.shape:
        return f"{actual.shape} for {expected.shape}"
    error = np.abs(actual - expected)
    wrong = np.count_nonzero(error > allowed)
    return f"{wrong} of {error.size} values differ, by up to {error.max():.3g}" if wrong else ""


def _check(what: str, against: str, reasons: Iterable[str]) -> Check:
    told = tuple(reasons)
    return Check(what=what, against=against, verdict=Verdict.FAIL if told else Verdict.PASS, reasons=told)


def _fields(actual: Any, expected: Any) -> list[str]:
    """The fields of two records that differ."""
    return [
        f"{name} is {getattr(actual, name)!r} in the manifest, {getattr(expected, name)!r} in the checkpoint"
        for name in type(actual).__struct_fields__
        if getattr(actual, name) != getattr(expected, name)
    ]


def _labels(actual: Sequence[str], expected: Sequence[str], where: str) -> list[str]:
    if len(actual) != len(expected):
        return [f"the manifest has {len(actual)} labels, {where} {len(expected)}"]
    wrong = [i for i, (a, b) in enumerate(zip(actual, expected, strict=True)) if a != b]
    if not wrong:
        return []
    first = wrong[0]
    more = f"; {len(wrong)} labels differ" if len(wrong) > 1 else ""
    return [f"class {first} is {actual[first]!r} in the manifest, {expected[first]!r} in {where}{more}"]
