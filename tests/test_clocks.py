"""No answer and no deadline depends on the wall clock: it is set back and forth while requests run."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import pytest

import vggdeploy
from vggdeploy import DeadlineError


def test_a_wall_clock_that_jumps_by_years_changes_nothing(
    bundle_dir: Path, digit_png: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    year = 365 * 86400.0
    jumps = itertools.cycle([0.0, year, -10 * year, 40 * year])
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))

    async def ask() -> None:
        async with vggdeploy.AsyncEngine(
            vggdeploy.load(bundle_dir, variant="onnx-fp32"), vggdeploy.AsyncLimits(max_delay_ms=1)
        ) as engine:
            answers = await asyncio.gather(*(engine.classify(digit_png, top=1, timeout=20) for _ in range(64)))
            assert {answer[0].label for answer in answers} == {digit_png.stem}
            with pytest.raises(DeadlineError):
                await engine.classify(digit_png, timeout=1e-9)
            engine.engine.reload()
            assert (await engine.classify(digit_png, top=1))[0].label == digit_png.stem

    began = time.monotonic()
    asyncio.run(ask())
    assert time.monotonic() - began < 20
