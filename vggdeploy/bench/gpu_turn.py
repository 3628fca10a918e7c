"""A turn on a GPU: NVML looks at it while it runs, seldom enough not to be in the way."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from vggdeploy.bench.candidate import Candidate
from vggdeploy.bench.messages import Turned
from vggdeploy.bench.nvml import GpuWatch
from vggdeploy.types import Device

_LOOK_SECONDS = 0.5


def gpu_turn(candidate: Candidate, seconds: float, device: Device, ours: Collection[int]) -> Turned:
    """`Candidate.turn`, with the energy of the GPU's own counter, what slowed it down, and who else used it."""
    with GpuWatch(device, seconds=_LOOK_SECONDS, ours=ours) as watch:
        turned = candidate.turn(seconds)
    seen = watch.result()
    unchecked = [f"GPU: {seen.missing}"] if seen.missing else []
    if not seen.missing and seen.others_use is None:
        unchecked.append("other processes on the GPU: NVML does not tell them from ours here")
    return msgspec.structs.replace(
        turned,
        joules=seen.joules if seen.joules_from == "counter" else None,
        slowed=seen.throttled,
        gpu_others=seen.others_use,
        not_checked=tuple(unchecked),
    )
