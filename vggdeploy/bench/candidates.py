"""One variant, open and checked, and one batch size of it that is measured in turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from math import gcd

from vggdeploy.bench.interference import CpuWatch, Rapl, megahertz
from vggdeploy.bench.messages import TurnReply
from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import UsageError
from vggdeploy.parity import check_golden
from vggdeploy.parity.metrics import distance
from vggdeploy.parity.reference import Array
from vggdeploy.runtime import CheckedSession, backend_for, runnable
from vggdeploy.types import Device, Verdict

MIN_CALLS = 5  # a turn
_COMPARED = 1024  # numbers of an answer
WARMUP_CALLS = 2  # a turn: the caches belong to whoever ran before


def judge_golden(
    session: CheckedSession, bundle: Bundle, variant: Variant, device: Device, sizes: Sequence[int]
) -> tuple[Verdict, tuple[str, ...]]:
    """The variant's verdict, unless its answer to the golden pair is wrong here in batches of one of the ``sizes`` that are
    measured: then ``fail``, with the reasons."""
    record = check_golden(session, bundle, variant, device, sizes=sizes)
    if record.verdict is not Verdict.FAIL:
        return variant.verdict, ()
    return record.verdict, tuple(f"wrong output: {reason}" for reason in record.reasons)


class Candidate:
    """A session at one batch size, which walks through the pool of distinct inputs.

    It answers the pool's first batch when it is made; `repeat` asks for the same again.
    """

    def __init__(self, session: CheckedSession, images: Array, batch: int, *, tolerance: float = 0.0) -> None:
        self._session = session
        name = session.inputs[0].name
        # Made once, and views: what is done between two calls is the harness's, and a tiny model takes microseconds.
        self._feeds = [{name: images[start : start + batch]} for start in starts(len(images), batch)]
        images.max()  # every page of a mapped file is read before a clock runs
        self._walk = cycle(self._feeds)
        self._tolerance = tolerance
        self._first = session.run(self._feeds[0])
        self._last: tuple[dict[str, Array], dict[str, Array]] | None = None

    @property
    def first_answer(self) -> tuple[float, ...]:
        """The first output for the pool's first image."""
        return tuple(map(float, next(iter(self._first.values()))[0].ravel()[:_COMPARED]))

    def call(self) -> int:
        """Nanoseconds of one call on the next batch of the pool."""
        feeds = next(self._walk)
        start = time.perf_counter_ns()
        outputs = self._session.run(feeds)
        taken = time.perf_counter_ns() - start
        self._last = feeds, outputs
        return taken

    def warm_up(self, seconds: float = 0.0) -> None:
        """`WARMUP_CALLS` that are not counted, and more for ``seconds``: a GPU at rest takes its time to raise its clocks."""
        end = time.perf_counter() + seconds
        calls = 0
        while calls < WARMUP_CALLS or time.perf_counter() < end:
            self.call()
            calls += 1

    def turn(self, seconds: float, *, warm: bool = False) -> TurnReply:
        """Calls for ``seconds``, `MIN_CALLS` at least, after a warm-up unless it is ``warm``. The energy is the CPU's."""
        if not warm:
            self.warm_up()
        times: list[int] = []
        rapl, watch = Rapl(), CpuWatch()
        joules, cpu = rapl.read(), time.process_time()
        end = time.perf_counter() + seconds
        while len(times) < MIN_CALLS or time.perf_counter() < end:
            times.append(self.call())
        used = time.process_time() - cpu
        return TurnReply(
            nanoseconds=tuple(times),
            cpu_seconds=used,
            joules=rapl.since(joules),
            others=watch.others(),
            megahertz=megahertz(),
        )

    def repeat(self) -> tuple[str, ...]:
        """Reasons why what was measured cannot be trusted: the same input has got another answer.

        The last measured batch is run once more, and so is the batch that was answered before anything was measured.
        """
        reasons = []
        if self._last is not None and not self._same(self._last[1], self._session.run(self._last[0])):
            reasons.append("wrong output: the last measured batch, run again, has another answer")
        if not self._same(self._first, self._session.run(self._feeds[0])):
            reasons.append("wrong output: a batch has another answer after the measurement than before it")
        return tuple(reasons)

    def _same(self, one: dict[str, Array], other: dict[str, Array]) -> bool:
        """Equal within ``tolerance`` (relative L2): some kernels of a GPU add in an order that changes."""
        return all(distance(one[name], other[name]) <= self._tolerance for name in one)


def starts(images: int, batch: int) -> list[int]:
    """Where in the pool the batches of a walk begin: neighbours, then shifted, so that few batches come again.

    0, 4, 1, 5, 2, 6, 3 for batches of 4 from 10 images.
    """
    places = images - batch + 1
    return [index * batch % places for index in range(places // gcd(batch, places))]


@dataclass(frozen=True)
class Entry:
    """One variant to measure. ``name`` is what its rows are called: ``variant``, or ``bundle:variant`` of several.
    ``threads`` are its own, where they are not those of the measurement. ``on_cpu`` says why it runs on the CPU beside an
    engine on a GPU."""

    bundle: Bundle
    variant: Variant
    device: Device
    name: str
    threads: int | None = None
    on_cpu: str = ""

    @property
    def sha256(self) -> str:
        return self.bundle.sha256(self.variant.path)


def beside_engines(entries: Sequence[Entry]) -> list[Entry]:
    """Entries on the GPU of the first engine among them, where their libraries can use it: a comparison is of libraries."""
    gpu = next((entry.device for entry in entries if backend_for(entry.variant).builds_on), None)
    return list(entries) if gpu is None else [_moved(entry, gpu) for entry in entries]


def _moved(entry: Entry, gpu: Device) -> Entry:
    if entry.device.kind != "cpu":
        return entry
    found = runnable(entry.variant, gpu)
    return replace(entry, device=gpu) if found.runs else replace(entry, on_cpu=found.reason)


def bundle_names(bundles: Sequence[Bundle]) -> list[str]:
    """A short name for each bundle: its directory's, with as many of those above it as tell it from the others.

    Raises:
        UsageError: the same bundle twice.
    """
    paths = [bundle.root.resolve().parts for bundle in bundles]
    if len(set(paths)) < len(paths):
        raise UsageError(
            "the same bundle is given twice", "give each bundle once; its variants are chosen by --variant"
        )
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("distinct paths differ somewhere")


def check_same_input(bundles: Sequence[Bundle]) -> None:
    """All bundles have to take the same arrays, prepared the same way: else they would not do the same work.

    Raises:
        UsageError: two of them do not.
    """
    first = bundles[0]
    for other in bundles[1:]:
        ours, theirs = first.manifest.input, other.manifest.input
        if (ours.dtype, ours.item_shape) != (theirs.dtype, theirs.item_shape):
            raise UsageError(
                f"{first.root} takes {ours}, {other.root} takes {theirs}", "measure bundles of one input side by side"
            )
        wanted, found = first.manifest.preprocess, other.manifest.preprocess
        # Of a uint8 graph mean and std are part of the work that is measured; of a float32 graph they make its input.
        fields = ("mode", "resize", "crop", "interpolation", *(() if ours.dtype == "uint8" else ("mean", "std")))
        if any(getattr(wanted, name) != getattr(found, name) for name in fields):
            raise UsageError(
                f"{first.root} and {other.root} prepare their images differently",
                "measure them one by one: vggdeploy bench BUNDLE",
            )
