"""Read a variant's precision back from what ships: from the file itself, or from what was read when it was built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from vggdeploy.bundle import REFERENCE, Bundle, PrecisionProof, SaturationRecord, Variant
from vggdeploy.bundle.precision import Product, by_type, check, check_engine
from vggdeploy.errors import ForeignModelError, ParityError
from vggdeploy.model.formats.admission import admitted
from vggdeploy.model.formats.exported import exported_parameters
from vggdeploy.model.formats.objects import Tensor, parameters
from vggdeploy.model.formats.sparsity import sparse_products, sparse_weights
from vggdeploy.model.layers import layer_names
from vggdeploy.parity.products import read_onnx
from vggdeploy.system.optional import installed
from vggdeploy.system.sealed import mapped, shown
from vggdeploy.types import Precision


def read_products(bundle: Bundle, variant: Variant) -> tuple[Product, ...] | None:
    """Every convolution and matrix product of a variant's file, and what it computes in.

    None where the format cannot be read back: engines.

    Raises:
        ForeignModelError: the file is not what vggdeploy writes.
    """
    if variant.format not in _READERS:
        return None
    with admitted(bundle, variant) as file:
        return _READERS[variant.format](file.path, layer_names(bundle.manifest.spec))


def _torch_products(
    read: Callable[[memoryview, str], Mapping[str, Tensor]], path: Path, layers: dict[str, str]
) -> tuple[Product, ...]:
    """A product computes in the type of its weights. ``layers`` as `layer_names`."""
    products = []
    for name, tensor in read(mapped(path), shown(path)).items():
        key, _, last = name.rpartition(".")
        if last == "weight" and len(tensor.shape) in (2, 4):
            products.append(Product(layers.get(".".join(key.split(".")[:2]), key), tensor.type))
    return tuple(products)


Read = Callable[[Path, dict[str, str]], tuple[Product, ...]]
_READERS: dict[str, Read] = {
    "onnx": read_onnx,
    "torchscript": partial(_torch_products, parameters),
    "torch-export": partial(_torch_products, exported_parameters),
    "aoti": partial(_torch_products, exported_parameters),
}


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


def read_bounds(bundle: Bundle, variant: Variant) -> SaturationRecord | None:
    """What the products of an INT8 variant can come to on CPUs without VNNI, from its file: see `SaturationRecord`.

    None where that is no question (another precision, an engine), or the onnx package is not installed.

    Raises:
        ForeignModelError: the file is not what vggdeploy writes.
    """
    on_cpu = variant.precision is Precision.INT8 and variant.format in ("onnx", "openvino")
    if not on_cpu or not installed("onnx"):
        return None
    from vggdeploy.parity.saturation import read_saturation

    with admitted(bundle, variant) as file:
        return read_saturation(file.path, layer_names(bundle.manifest.spec))


def wrong_precisions(bundle: Bundle) -> dict[str, str]:
    """Variant → how its file contradicts what is said of its network, its precision, its INT8 products, or its 2:4 layers."""
    found = {variant.name: _wrong(bundle, variant) for variant in bundle.manifest.variants}
    return {name: cause for name, cause in found.items() if cause}


def check_sparsity(bundle: Bundle, variant: Variant) -> None:
    """Refuse a variant whose record of 2:4 layers (of a checkpoint: that of its last step) contradicts the file that it is of.

    Raises:
        ParityError: a layer is not what the record says.
    """
    claim = _checkpoint_claim(bundle, variant) if variant.name == REFERENCE else _engine_claim(bundle, variant)
    if claim is None or claim[0] == claim[1]:
        return
    said, found = claim
    false = [name for name in said if name not in found]
    raise ParityError(
        f"{false[0] if false else found[0]} is {'not ' if false else ''}2:4 sparse, and its record says otherwise",
        "make it again: vggdeploy optimize CHECKPOINT --step sparse -o DIR",
    )


Claim = tuple[tuple[str, ...], tuple[str, ...]]  # the layers of a record, and those of the file


def _checkpoint_claim(bundle: Bundle, variant: Variant) -> Claim | None:
    checkpoint = bundle.checkpoint()
    said = next((step.sparsity for step in reversed(checkpoint.steps) if step.sparsity is not None), None)
    if said is None or said.sha256 != checkpoint.weights_sha256:  # it was trained on since
        return None
    with bundle.main_file(variant).open() as file:
        return said.layers, sparse_weights(file.path, checkpoint.spec)


def _engine_claim(bundle: Bundle, variant: Variant) -> Claim | None:
    build = variant.build
    if build is None or build.sparse is None:
        return None
    sources = [v for v in bundle.manifest.variants if bundle.sha256(v.path) == build.source_sha256]
    if not sources:
        return None
    with admitted(bundle, sources[0]) as file:
        return build.sparse.layers, sparse_products(file.path, layer_names(bundle.manifest.spec))


def _wrong(bundle: Bundle, variant: Variant) -> str:
    recorded = variant.quantisation.saturation if variant.quantisation else None
    try:
        if recorded is not None and read_bounds(bundle, variant) not in (None, recorded):
            return "the record of what its INT8 products can come to is not this file's"
        check_precision(variant, read_products(bundle, variant))
        check_sparsity(bundle, variant)
    except (ForeignModelError, ParityError) as error:
        return error.cause
    return ""
