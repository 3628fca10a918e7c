"""The JSON Schema of ``manifest.json``, for programs in other languages that read bundles.

python -m vggdeploy.bundle.schema > docs/reference/manifest.schema.json
"""

from __future__ import annotations

import sys
from typing import Any

from vggdeploy.bundle.manifest import SCHEMA_VERSION, Manifest
from vggdeploy.records.schema import json_schema, schema_text


def manifest_schema() -> dict[str, Any]:
    """What no schema can say (that labels fit classes, …) `parse_manifest` checks."""
    return json_schema(Manifest, f"manifest.json of a vggdeploy bundle, schema version {SCHEMA_VERSION}")


def main() -> None:
    sys.stdout.buffer.write(schema_text(manifest_schema()))


if __name__ == "__main__":
    main()
