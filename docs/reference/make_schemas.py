"""Write the JSON Schemas of results and of the manifest: ``python docs/reference/make_schemas.py [DIRECTORY]``."""

from __future__ import annotations

import sys
from pathlib import Path

from vggdeploy.bundle.manifest import manifest_schema
from vggdeploy.records.schema import RESULTS, result_schema, schema_text

if __name__ == "__main__":
    directory = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parent)
    schemas = {"manifest": manifest_schema()} | {name: result_schema(name) for name in RESULTS}
    for name, schema in schemas.items():
        (directory / f"{name}.schema.json").write_bytes(schema_text(schema))
