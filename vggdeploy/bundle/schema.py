"""The JSON Schema of ``manifest.json``, for programs in other languages that read bundles.

    python -m vggdeploy.bundle.schema > docs/reference/manifest.schema.json
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from vggdeploy.bundle.manifest import SCHEMA_VERSION, Manifest


def manifest_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12. What no schema can say (that labels fit classes, …) `parse_manifest` checks."""
    schema = msgspec.json.schema(Manifest)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"manifest.json of a vggdeploy bundle, schema version {SCHEMA_VERSION}",
        **_with_one_line_descriptions(schema),
    }


def _with_one_line_descriptions(schema: Any) -> Any:
    """Docstrings without their line breaks: Python 3.13 indents them otherwise than 3.12."""
    if isinstance(schema, list):
        return [_with_one_line_descriptions(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: " ".join(value.split()) if key == "description" and isinstance(value, str)
        else _with_one_line_descriptions(value)
        for key, value in schema.items()
    }  # fmt: skip


def main() -> None:
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(manifest_schema()), indent=2) + b"\n")


if __name__ == "__main__":
    main()
