"""Proofs that passed on this machine, kept in the user's cache: an engine is proven once here, not at every load.

They never travel with a bundle: that an engine is right on one machine says nothing about the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import VggdeployError
from vggdeploy.files import atomic_write, read_regular
from vggdeploy.records import ParityRecord, from_json, to_json
from vggdeploy.types import Verdict
from vggdeploy.usercache import cache_home

_MAX_BYTES = 2**20


class Proofs:
    """The proofs of one variant's bytes on one machine.

    Args:
        sha256: of the bytes that run.
        host: what has to stay the same for a proof to hold: machine, GPU, driver, library and its version.
    """

    def __init__(self, bundle: Bundle, variant: Variant, sha256: str, host: Mapping[str, str]) -> None:
        manifest = bundle.manifest
        golden = [*manifest.golden.inputs.values(), *manifest.golden.outputs.values()]
        about = {
            "sha256": sha256,
            "golden": [bundle.sha256(path) for path in golden],
            "thresholds": to_json(manifest.thresholds[variant.precision]).decode(),
            "host": dict(host),
        }
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self.file: Path = cache_home() / "proofs" / f"{key}.json"
        self._sha256 = sha256

    def passed(self) -> bool:
        """Whether this was proven here before. A file that is damaged, or says anything else, is no proof."""
        try:
            record = from_json(read_regular(self.file, limit=_MAX_BYTES), ParityRecord, what=str(self.file))
        except (OSError, VggdeployError):
            return False
        return record.verdict is Verdict.PASS and record.sha256 == self._sha256

    def keep(self, record: ParityRecord) -> None:
        """Remember a pass. Where the cache cannot be written, the next load proves again."""
        if record.verdict is Verdict.PASS:
            with contextlib.suppress(OSError, VggdeployError):
                atomic_write(self.file, to_json(record))
