"""Other precisions of a graph that is there: OpenVINO computes an FP32 file in FP32 or in BF16, as it is told."""

from __future__ import annotations

import msgspec

from vggdeploy.bundle import PrecisionProof, Variant
from vggdeploy.bundle.precision import computes_in
from vggdeploy.errors import ParityError
from vggdeploy.types import Precision

OPENVINO = "openvino"
PRECISIONS = (Precision.FP32, Precision.BF16)  # FP16 on CPUs: OpenVINO stores in it, and computes in FP32


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
