"""axe-core, the accessibility rules that browsers' own tools check, at one version and of known bytes."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

VERSION = "4.14.1"
SHA512 = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm (apt-get install npm)")


def fetch_axe(folder: Path) -> str:
    """The script, from npm's package; refused where its bytes are others."""
    command = ["npm", "pack", f"axe-core@{VERSION}", "--ignore-scripts", "--pack-destination", folder]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    packed = folder / f"axe-core-{VERSION}.tgz"
    assert base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode() == SHA512
    with tarfile.open(packed) as archive:
        script = archive.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


def violations(page: Page, axe: str) -> list[str]:
    """Each rule that the page breaks, with the first place where it does."""
    page.evaluate(axe)  # in the page's world, past its policy, as a browser's own tools are
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [f"{v['id']}: {v['help']}: {v['nodes'][0]['html'][:200]}" for v in found["violations"]]
