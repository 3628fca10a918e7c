"""Other precisions of a graph that is there: OpenVINO computes an FP32 file in FP32 or in BF16, as it is told."""

from __future__ import annotations

import msgspec

from vggdeploy.bundle import PrecisionProof, Variant
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


def with_types(variant: Variant, computes_in: dict[str, int], source: Variant) -> Variant:
    """The variant with its proof of precision: how many convolutions and matrix products compute in which type.

    Args:
        computes_in: what the compiled model says.
        source: the variant that holds the weights.

    Raises:
        ParityError: none computes in the precision that was asked for, or in FP32 and BF16 not all do.
    """
    right, total = computes_in.get(variant.precision, 0), sum(computes_in.values())
    if not right or (variant.precision is not Precision.INT8 and right != total):
        raise ParityError(
            f"{variant.name} was asked for, and OpenVINO computes in {computes_in or 'nothing'}",
            "leave it out on this machine: vggdeploy doctor",
        )
    weights = source.proof.weight_bytes if source.proof else {}
    proof = PrecisionProof(layers=dict(computes_in), weight_bytes=weights)
    return msgspec.structs.replace(variant, proof=proof)
