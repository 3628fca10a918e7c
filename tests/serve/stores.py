"""Several bundles in one directory, and servers of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.serve.app import open_engine
from vggdeploy.serve.models import Models
from vggdeploy.serve.settings import MIB, Settings
from vggdeploy.serve.telemetry import Metrics

if TYPE_CHECKING:
    from serve.conftest import Live

ONE = 10 * MIB


def relabel(home: Path, word: str) -> None:
    """Another version of a bundle: its labels begin with ``word``."""
    opened = Bundle.open(home)
    with update_bundle(opened) as draft:
        labels = tuple(f"{word} {number}" for number in range(len(opened.manifest.labels)))
        draft.manifest = msgspec.structs.replace(opened.manifest, labels=labels)


def settings_of(*bundles: object, **more: Any) -> Settings:
    first, *others = map(str, bundles)
    return Settings(bundle=first, also=tuple(others), variant="onnx-fp32", **more)


def label(live: Live, png: Path, model: str | None = None) -> str:
    query = {} if model is None else {"model": model}
    reply = live.client.post("/classify", content=png.read_bytes(), params=query)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["predictions"][0]["label"])


def states(live: Live) -> dict[str, str]:
    return {m["name"]: m["state"] for m in live.client.post("/v2/repository/index").json()}


def opened(settings: Settings, opener: Callable[[Settings, Metrics], Any] = open_engine) -> Models:
    return Models(settings, Metrics(), opener)


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
