"""Where the time of one image goes on the host, through the engine that applications hold."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggdeploy.engine.engine import Engine
from vggdeploy.engine.predictions import predictions, probabilities
from vggdeploy.parity.reference import Array
from vggdeploy.preprocess import denormalise, prepare_batch
from vggdeploy.records import HostTimes
from vggdeploy.spec import PreprocessSpec

MIN_CALLS = 5
TOP = 5
MAX_IMAGES = 64  # that are kept encoded
SOURCE = "PNG in memory, of the model's own input size"


def encoded(images: Array, spec: PreprocessSpec) -> list[bytes]:
    """Graph inputs as PNG files in memory: ``uint8 [N, H, W, C]``, or ``float32 [N, C, H, W]`` as `normalise` makes it."""
    pixels: NDArray[np.uint8] = images if images.dtype == np.uint8 else denormalise(images, spec)
    files = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image)).save(file, "PNG")
        files.append(file.getvalue())
    return files


def host_times(engine: Engine, files: Sequence[bytes], batch: int, seconds: float) -> HostTimes | None:
    """Take ``classify`` apart for ``seconds``: medians of a call, divided by the images of the call.

    Returns:
        None for a bundle without class scores: it classifies nothing.
    """
    manifest = engine.bundle.manifest
    if not any(output.name in ("logits", "probabilities") for output in manifest.outputs):
        return None
    walk = cycle(files)
    parts: list[tuple[int, int, int]] = []
    end = time.perf_counter() + seconds
    while len(parts) < MIN_CALLS or time.perf_counter() < end:
        images = list(islice(walk, batch))
        start = time.perf_counter_ns()
        prepared = prepare_batch(images, manifest.preprocess)
        ready = time.perf_counter_ns()
        outputs = engine.run_prepared(prepared)
        answered = time.perf_counter_ns()
        for row in probabilities(outputs):
            predictions(manifest, row, TOP)
        parts.append((ready - start, answered - ready, time.perf_counter_ns() - answered))
    preprocess, run, postprocess = (float(ns) / 1e6 / batch for ns in np.median(np.asarray(parts), axis=0))
    return HostTimes(
        calls=len(parts), source=SOURCE, preprocess_ms=preprocess, queue_ms=None, run_ms=run, postprocess_ms=postprocess
    )
