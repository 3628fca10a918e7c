"""Variants that run an exported FP32 ONNX file on OpenVINO, in FP32 or BF16, and the proof of what it computes in."""

from __future__ import annotations

import msgspec

from vggdeploy.bundle import Bundle, PrecisionProof, Variant
from vggdeploy.bundle.precision import computes_in
from vggdeploy.errors import IncompatibleError, ParityError
from vggdeploy.runtime import open_session, runnable
from vggdeploy.types import Precision

OPENVINO = "openvino"


def openvino_variant(source: Variant, precision: Precision) -> Variant:
    """The variant that runs ``source``'s ONNX file on OpenVINO: it adds no bytes to the bundle.

    Its proof is empty until OpenVINO compiled it: see `with_types`.
    """
    return Variant(
        name=f"{OPENVINO}-{precision}", format=OPENVINO, precision=precision, path=source.path, batch=source.batch
    )


def with_types(variant: Variant, layers: dict[str, int], source: Variant) -> Variant:
    """The variant with its proof of precision: how many convolutions and matrix products compute in which type.

    Args:
        layers: what the compiled model says.
        source: the variant that holds the weights.

    Raises:
        ParityError: none computes in the precision that was asked for, or in FP32 and BF16 not all do.
    """
    if not computes_in(layers, variant.precision):
        raise ParityError(
            f"{variant.name} was asked for, and OpenVINO computes in {layers or 'nothing'}",
            "leave it out on this machine: vggdeploy doctor",
        )
    weights = source.proof.weight_bytes if source.proof else {}
    proof = PrecisionProof(layers=dict(layers), weight_bytes=weights)
    return msgspec.structs.replace(variant, proof=proof)


def read_back(bundle: Bundle, variant: Variant) -> Variant:
    """The variant with the precision that it really computes in, where only its backend knows that.

    Raises:
        IncompatibleError: it cannot run here, so it cannot be asked.
        ParityError: it computes in another precision.
    """
    if variant.format != "openvino":
        return variant
    fitness = runnable(variant)
    if not fitness.runs:
        raise IncompatibleError(
            f"{variant.name} cannot run here, so it cannot be proven: {fitness.reason}", fitness.fix
        )
    source = next(v for v in bundle.manifest.variants if v.path == variant.path and v.format == "onnx")
    with open_session(bundle, variant) as session:
        types: dict[str, int] = session.unchecked.computes_in()  # type: ignore[attr-defined]  # OpenVINO's session
    return with_types(variant, types, source)
