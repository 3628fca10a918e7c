"""A slim bundle: one variant and the golden pair, without the FP32 reference. It opens, loads and proves like any other."""

from __future__ import annotations

from pathlib import Path

import msgspec

from vggdeploy.bundle import MANIFEST_NAME, Bundle, Origin, Variant, create_bundle
from vggdeploy.errors import ParityError, UsageError, VggdeployError
from vggdeploy.package.base import Made, Order, chosen_variant, copy_checked, variant_files
from vggdeploy.parity import check_golden
from vggdeploy.runtime import backend_for, open_session, runnable
from vggdeploy.runtime.registry import BACKENDS, default_device
from vggdeploy.types import Verdict

FORMATS = tuple(backend.format for backend in BACKENDS if backend.format != "checkpoint")


def package_slim(order: Order) -> Made:
    """Write a bundle of one variant, and prove it from its written bytes where this machine can run it.

    Raises:
        UsageError: a whole bundle stands at the output: its FP32 reference would be lost.
        ParityError: the golden pair fails; nothing is written.
    """
    _refuse_whole_bundle(order.output)
    variant = chosen_variant(order, FORMATS, "a slim bundle")
    slim = write_slim(order, variant)
    return Made(
        order.record("slim", [variant], slim.manifest.files),
        next=(f"vggdeploy verify {order.output}", f"vggdeploy predict {order.output} IMAGE"),
    )


def _refuse_whole_bundle(output: Path) -> None:
    if not (output / MANIFEST_NAME).is_file():
        return
    try:
        slim = Bundle.open(output, only=()).manifest.origin is not None
    except VggdeployError:  # a bundle that somebody may still want to mend
        slim = False
    if not slim:
        raise UsageError(f"{output} holds a whole bundle, with its FP32 reference", "choose another output directory")


def write_slim(order: Order, variant: Variant) -> Bundle:
    """The bundle of ``variant`` alone, at the order's output."""
    bundle, manifest = order.bundle, order.bundle.manifest
    golden = (*manifest.golden.pair, *manifest.golden.anchor)
    # A slim bundle can be cut from a slim one: the weights are still those that the first one left behind.
    origin = manifest.origin or Origin(
        bundle=manifest.name, digest=manifest.digest, reference_sha256=bundle.sha256(manifest.reference().path)
    )
    with create_bundle(order.output, overwrite=order.overwrite) as draft:
        for relative in (*golden, *variant_files(bundle, variant)):
            copy_checked(bundle, relative, draft.path(relative))
            draft.known(relative, bundle.sha256(relative))
        draft.manifest = msgspec.structs.replace(manifest, variants=(variant,), origin=origin)
        _prove(draft.finish(), variant)
    return Bundle(order.output, draft.manifest)


def _prove(bundle: Bundle, variant: Variant) -> None:
    """The golden pair through the copied bytes. What cannot run here keeps the verdict that it came with."""
    device = default_device(backend_for(variant))
    if not runnable(variant, device).runs:
        return
    with open_session(bundle, variant, device=device) as session:
        record = check_golden(session, bundle, variant, device, stress=True)
    if record.verdict is Verdict.FAIL:
        raise ParityError(
            f"{variant.name} misses the golden pair on this machine: {'; '.join(record.reasons)}",
            f"nothing was written; see why: vggdeploy verify {bundle.root} --variant {variant.name}",
        )
