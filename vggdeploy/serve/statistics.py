"""What has become of a model's requests since it was opened: Triton's statistics extension, over HTTP and gRPC.

Source: Triton Inference Server, docs/protocol/extension_statistics.md. Durations are added up, in nanoseconds: those of
requests in ``inference_stats``, those of batches in ``batch_stats``. ``compute_input`` is decoding,
``compute_output`` what comes after the graph. They are of one process.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from vggdeploy.engine.async_engine import Answer

VERSION = "1"


@dataclass
class Duration:
    """How often, and how long together."""

    count: float = 0  # of batches a request counts its share
    ns: float = 0

    def add(self, seconds: float, share: float = 1) -> None:
        self.count += share
        self.ns += seconds * 1e9 * share

    def told(self) -> dict[str, int]:
        return {"count": round(self.count), "ns": round(self.ns)}


@dataclass
class Statistics:
    """Of one open model."""

    last_ms: int = 0
    rows: int = 0
    executions: float = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    decode: Duration = field(default_factory=Duration)
    run: Duration = field(default_factory=Duration)
    rest: Duration = field(default_factory=Duration)
    batches: defaultdict[int, Duration] = field(default_factory=lambda: defaultdict(Duration))

    def answered(self, answer: Answer) -> None:
        """Count a request that the graph has just answered."""
        rows = len(next(iter(answer.outputs.values())))
        share = rows / answer.batch  # of the batch that it was in: they add up to whole ones
        parts = (answer.decode_ms + answer.queue_ms + answer.compute_ms) / 1e3
        whole = time.perf_counter() - answer.arrived
        self.last_ms = int(time.time() * 1e3)
        self.rows += rows
        self.executions += share
        self.success.add(whole)
        self.queue.add(answer.queue_ms / 1e3)
        self.decode.add(answer.decode_ms / 1e3)
        self.run.add(answer.compute_ms / 1e3)
        self.rest.add(max(0.0, whole - parts))
        self.batches[answer.batch].add(answer.compute_ms / 1e3, share)

    def failed(self, seconds: float) -> None:
        """Count a request that was not answered."""
        self.fail.add(seconds)


def model_statistics(name: str, found: Statistics) -> dict[str, Any]:
    """Of one model, as the extension has them."""
    nothing = Duration().told()
    return {
        "name": name,
        "version": VERSION,
        "last_inference": found.last_ms,
        "inference_count": found.rows,
        "execution_count": round(found.executions),
        "inference_stats": {
            "success": found.success.told(),
            "fail": found.fail.told(),
            "queue": found.queue.told(),
            "compute_input": found.decode.told(),
            "compute_infer": found.run.told(),
            "compute_output": found.rest.told(),
        },
        "batch_stats": [
            {"batch_size": size, "compute_input": nothing, "compute_infer": spent.told(), "compute_output": nothing}
            for size, spent in sorted(found.batches.items())
        ],
    }
