"""Proofs that passed on this machine, kept in the user's cache: an engine is proven once here, not at every load.

They never travel with a bundle: that an engine is right on one machine says nothing about the next.
"""

from __future__ import annotations

from collections.abc import Mapping

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.cache import Cache, cache_home, key_of
from vggdeploy.errors import BundleError
from vggdeploy.records import ParityRecord, from_json, to_json
from vggdeploy.types import Verdict

_MAX_BYTES = 2**20
LIMIT_BYTES = 64 * 2**20  # of all proofs


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
        self._key = key_of(about)
        self._cache = Cache(cache_home() / "proofs", suffix=".json", limit=LIMIT_BYTES)
        self._sha256 = sha256

    def passed(self) -> bool:
        """Whether this was proven here before. A file that is damaged, that another user could have written, or that says
        anything else, is no proof."""
        data = self._cache.read(self._key, limit=_MAX_BYTES)
        if data is None:
            return False
        try:
            record = from_json(data, ParityRecord, what="a kept proof")
        except BundleError:
            return False
        return record.verdict is Verdict.PASS and record.sha256 == self._sha256

    def keep(self, record: ParityRecord) -> None:
        """Remember a pass. Where the cache cannot be written, the next load proves again."""
        if record.verdict is Verdict.PASS:
            self._cache.write(self._key, to_json(record))
