"""The deployable directory: its schema (`manifest`), its files (`store`), and the checkpoint inside it."""

from vggdeploy.bundle.manifest import (
    MANIFEST_NAME,
    FileRecord,
    GoldenFiles,
    Manifest,
    Origin,
    ReferenceAccuracy,
)
from vggdeploy.bundle.store import Bundle, create_bundle, update_bundle
from vggdeploy.bundle.variant import (
    REFERENCE,
    BuildRecord,
    Measurement,
    PrecisionProof,
    ProductBound,
    QuantisationRecord,
    RebuildSpread,
    SaturationRecord,
    SparseKernels,
    Variant,
)

__all__ = [
    "MANIFEST_NAME",
    "REFERENCE",
    "BuildRecord",
    "Bundle",
    "FileRecord",
    "GoldenFiles",
    "Manifest",
    "Measurement",
    "Origin",
    "PrecisionProof",
    "ProductBound",
    "QuantisationRecord",
    "RebuildSpread",
    "ReferenceAccuracy",
    "SaturationRecord",
    "SparseKernels",
    "Variant",
    "create_bundle",
    "update_bundle",
]
