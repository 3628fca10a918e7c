"""The deployable directory: its schema (`manifest`), its files (`store`), and the checkpoint inside it."""

from vggdeploy.bundle.manifest import (
    MANIFEST_NAME,
    REFERENCE,
    BuildRecord,
    FileRecord,
    GoldenFiles,
    Manifest,
    Measurement,
    Origin,
    PrecisionProof,
    ProductBound,
    QuantisationRecord,
    RebuildSpread,
    ReferenceAccuracy,
    SaturationRecord,
    Variant,
)
from vggdeploy.bundle.store import Bundle, create_bundle, update_bundle

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
    "Variant",
    "create_bundle",
    "update_bundle",
]
