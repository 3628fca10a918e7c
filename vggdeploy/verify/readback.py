"""Read a variant's precision back from what ships: from the file itself, or from what was read when it was built."""

from __future__ import annotations

from vggdeploy.bundle import Bundle, PrecisionProof, Variant
from vggdeploy.bundle.precision import Product, by_type, check, check_engine
from vggdeploy.errors import ParityError
from vggdeploy.model.layers import layers_of
from vggdeploy.spec import ModelSpec
from vggdeploy.system.optional import installed

# Format → the package that reads it.
READERS = {"onnx": "onnx", "torchscript": "torch"}


def read_products(bundle: Bundle, variant: Variant) -> tuple[Product, ...] | None:
    """Every convolution and matrix product of a variant's file, and what it computes in.

    None where the format cannot be read back (engines), or what reads it is not installed.

    Raises:
        BundleError: the file is not of its format.
    """
    if variant.format not in READERS or not installed(READERS[variant.format]):
        return None
    path, names = bundle.path(variant.path), layer_names(bundle.manifest.spec)
    if variant.format == "onnx":
        from vggdeploy.parity.products import read_onnx

        return read_onnx(path, names)
    from vggdeploy.runtime import torchscript

    return torchscript.read_products(path, names)


def layer_names(spec: ModelSpec) -> dict[str, str]:
    """Prefix in a shipped file → what the layer is called: ``features.8`` → ``conv3_2``.

    Batch norms are folded into the convolutions there, and have no place any more. The last linear layer
    is ``logits``, as its output.
    """
    kept = [layer for layer in layers_of(spec) if layer.kind != "batch_norm"]
    features = [layer.name for layer in kept if layer.part == "features"]
    convolutions = {f"features.{n}": name for n, name in enumerate(features) if name.startswith("conv")}
    dense = {x.key: "logits" if x.name == spec.last else x.name for x in kept if x.kind == "linear"}
    return convolutions | dense


def check_precision(variant: Variant, products: tuple[Product, ...] | None) -> None:
    """Refuse a variant whose file (for an engine: whose build record) has another precision than the manifest names.

    Raises:
        ParityError: it is not; the layers are named.
    """
    if products is not None:
        proof = PrecisionProof(layers=by_type(products), weight_bytes={})
        check(proof, variant.precision, source=variant.path, products=products)
    elif variant.proof is not None:
        check(variant.proof, variant.precision, source=variant.name)
        check_engine(variant.proof.engine, variant.precision, source=variant.name)


def wrong_precisions(bundle: Bundle) -> dict[str, str]:
    """Variant → how its file contradicts the precision that the manifest names, for those that do."""
    causes = {}
    for variant in bundle.manifest.candidates():
        try:
            check_precision(variant, read_products(bundle, variant))
        except ParityError as error:
            causes[variant.name] = error.cause
    return causes
