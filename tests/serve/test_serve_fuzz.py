"""Whatever is sent: an answer of 2xx, 4xx or 503, and a server that goes on in the same memory."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image
from serve.conftest import Live, Starts

from vggdeploy.data.loaders import ImageSet
from vggdeploy.parity.pixels import IMAGES

HUGE = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f"]


def check(reply: Any) -> None:
    status = reply.status_code
    assert 200 <= status < 300 or 400 <= status < 500 or status == 503, (status, reply.text[:300])
    if status >= 400:
        assert set(reply.json()) >= {"error"}
        assert "Traceback" not in reply.text


@pytest.mark.parametrize("examples", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_requests_made_from_the_openapi_document(live: Live, examples: int) -> None:
    """Valid and invalid ones, of every route that the document names."""
    statuses: Counter[int] = Counter()
    document = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    for found in document.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:

            @settings(max_examples=examples, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def run(case: Any) -> None:
                reply = case.call()
                check(reply)
                statuses[reply.status_code] += 1

            with contextlib.suppress(Unsatisfiable):  # a route without parameters has no invalid request
                run()
    assert {200, 404} <= set(statuses)
    assert statuses.total() > 15


def mutated(seeds: list[bytes], random_: random.Random) -> bytes:
    """An image file with some of: flipped bits, random bytes, a cut, a doubled, dropped or foreign part, a huge number."""
    data = bytearray(random_.choice(seeds))
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(data) + 1)
        span = random_.randint(1, 64)
        kind = random_.randrange(7)
        if kind == 0:
            for _ in range(random_.randint(1, 16)):
                if data:
                    data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
        elif kind == 1:
            data[at : at + span] = random_.randbytes(span)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = data[at : at + span]
        elif kind == 4:
            del data[at : at + span]
        elif kind == 5:
            other = random_.choice(seeds)
            start = random_.randrange(len(other))
            data[at : at + span] = other[start : start + span]
        else:
            data[at : at + 4] = random_.choice(
                [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f"]
            )
    return bytes(data)


def seeds(digits: ImageSet) -> list[bytes]:
    """Small images in every format, plain and strange."""
    found = [path.read_bytes() for path in sorted(IMAGES.iterdir()) if path.is_file()]
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"):
        file = io.BytesIO()
        Image.fromarray(digits.images[0, ..., 0]).convert("RGB").save(file, kind)
        found.append(file.getvalue())
    return found


def bombard(client: httpx.Client, files: list[bytes], count: int, seed: int) -> Counter[int]:
    random_ = random.Random(seed)
    statuses: Counter[int] = Counter()
    for _ in range(count):
        reply = client.post("/classify", content=mutated(files, random_))
        check(reply)
        statuses[reply.status_code] += 1
    return statuses


def test_mutated_images(live: Live, digits_test: ImageSet) -> None:
    statuses = bombard(live.client, seeds(digits_test), 300, seed=int(os.environ.get("VGGDEPLOY_FUZZ_SEED", "0")))
    assert statuses[200] > 20  # the mutations are small enough to get past the first bytes
    assert statuses[400] > 20
    assert live.engine.health().ok
    assert live.engine.health().failed == 0


def resident(process: int) -> int:
    """Bytes of resident memory."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_ten_thousand_mutated_images_leave_the_memory_flat(
    start: Starts, bundle_dir: Path, digits_test: ImageSet
) -> None:
    command = start(bundle_dir, "--variant", "onnx-fp32", "--drain", "0")
    files = seeds(digits_test)
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=command.url, timeout=30) as client:
        bombard(client, files, 3000, seed=1)
        gc.collect()
        before = resident(command.process.pid)
        open_before = len(list(Path(f"/proc/{command.process.pid}/fd").iterdir()))
        for seed in range(2, 12):
            statuses += bombard(client, files, 1000, seed=seed)
        after = resident(command.process.pid)
        open_after = len(list(Path(f"/proc/{command.process.pid}/fd").iterdir()))
    assert statuses.total() == 10_000
    assert set(statuses) <= {200, 400}
    assert open_after <= open_before
    assert after < 1.05 * before, (before, after)
    assert command.stop() == 0
