"""Whether the answers under load are right, and belong to the images that were asked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vggdeploy.bench.loadgen.drive import answer_log
from vggdeploy.bench.loadgen.scenarios import MULTI_STREAM_SAMPLES, Load
from vggdeploy.bench.loadgen.sut import SystemUnderTest, pack, unpack
from vggdeploy.parity import OutputStats, Reference, judge, top1
from vggdeploy.parity.bounds import flip_count
from vggdeploy.parity.reference import Array, run_all, sample_bytes
from vggdeploy.records import LoadAnswers, OutputParity, Thresholds
from vggdeploy.runtime import CheckedSession
from vggdeploy.types import Verdict

_LEAST_IMAGES = 4 * MULTI_STREAM_SAMPLES
_ANSWER_BYTES = 64 * 2**20  # LoadGen keeps every answer, and writes it in hexadecimal
_NAMED = 3  # misplaced answers that a reason names


def check_answers(
    session: CheckedSession, golden: Reference, pool: Array, load: Load, thresholds: Thresholds
) -> LoadAnswers:
    """Have LoadGen ask the golden images and some of the pool under a load, and judge what came back.

    The golden images' answers are compared with the FP32 reference's by the thresholds of the variant's precision. Every
    answer is also compared with what the session says of that image alone: an answer nearer to that of another image has
    been given to the wrong query, however close the two are.

    Args:
        golden: of the bundle, with inputs as the graph wants them.
        pool: distinct inputs. As many are asked as are answered within the load's time, 32 at least.

    Raises:
        VggdeployError: the session failed under load.
    """
    images = np.concatenate([golden.images[:], pool])[: _count(session, pool, load, len(golden.images))]
    asked, given = answer_log(session, images, load)
    quiet = np.concatenate([pack(session, outputs) for outputs in run_all(session, images)])
    return judge_answers(session, golden, np.asarray(asked), given, quiet, thresholds)


def judge_answers(
    session: CheckedSession,
    golden: Reference,
    asked: NDArray[np.int64],
    given: Array,
    quiet: Array,
    thresholds: Thresholds,
) -> LoadAnswers:
    """The record of ``given``, the answers to the images ``asked``; ``quiet`` has those of every image without load."""
    reasons: list[str] = []
    if missing := len(quiet) - len(set(asked.tolist())):
        reasons.append(f"{missing} of {len(quiet)} images got no answer")
    misplaced, changed = np.zeros(len(asked), bool), np.zeros(len(asked), bool)
    owner = asked.copy()
    alone = unpack(session, quiet)
    loaded = unpack(session, given)
    for name, answers in loaded.items():
        wrong, nearest, far = _compare(answers, alone[name], asked, thresholds.relative_l2)
        owner = np.where(wrong & ~misplaced, nearest, owner)
        misplaced |= wrong
        changed |= far
    changed &= ~misplaced
    if misplaced.any():
        rows = np.flatnonzero(misplaced)[:_NAMED]
        named = ", ".join(f"image {asked[row]} got that of image {owner[row]}" for row in rows)
        reasons.append(f"{int(misplaced.sum())} of {len(asked)} answers belong to other images: {named}")
    if changed.any():
        reasons.append(f"{int(changed.sum())} of {len(asked)} answers are others than without load")
    outputs, wrong_values = _against_golden(golden, loaded, asked, thresholds)
    reasons += wrong_values
    return LoadAnswers(
        images=len(quiet),
        misplaced=int(misplaced.sum()),
        changed=int(changed.sum()),
        outputs=outputs,
        verdict=Verdict.FAIL if reasons else Verdict.PASS,
        reasons=tuple(reasons),
    )


def _compare(
    given: Array, quiet: Array, asked: NDArray[np.int64], limit: float
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.bool_]]:
    """Of each answer: whether it is another image's, whose it is nearest to, and whether it is further than ``limit``
    (relative L2) from the one without load.

    It is another's when it is nearer to that than half its distance to its own, and its own is further than a tenth of
    the limit: rounding does not depend on which images share a batch by more than that.
    """
    a, b = given.astype(np.float64), quiet.astype(np.float64)
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * (a @ b.T)
    distances = np.sqrt(np.maximum(squares, 0))
    rows = np.arange(len(asked))
    own = np.linalg.norm(a - b[asked], axis=1)
    distances[rows, asked] = own
    nearest: NDArray[np.int64] = distances.argmin(axis=1)
    scale = np.linalg.norm(b[asked], axis=1)
    misplaced = (distances[rows, nearest] < own / 2) & (own > limit / 10 * scale)
    # "not ≤": a NaN is another answer too.
    return misplaced, nearest, ~(own <= limit * scale)


def _against_golden(
    golden: Reference, loaded: dict[str, Array], asked: NDArray[np.int64], thresholds: Thresholds
) -> tuple[tuple[OutputParity, ...], tuple[str, ...]]:
    """The answers to the golden images, which are the first ones, beside the reference's."""
    chosen = asked < len(golden.images)
    outputs = []
    expected, answered = {}, {}
    for name, reference in golden.outputs.items():
        flat = reference[:].reshape(len(reference), -1)
        rows = chosen & (asked < len(flat))
        expected[name], answered[name] = flat[asked[rows]], loaded[name][rows]
        stat = OutputStats(name)
        stat.update(expected[name], answered[name])
        outputs.append(stat.result())
    ours, theirs = top1(answered), top1(expected)
    flips = flip_count(int((ours != theirs).sum()), len(ours)) if ours is not None and theirs is not None else None
    return tuple(outputs), judge(tuple(outputs), flips, thresholds, golden=True).reasons


def _count(session: CheckedSession, pool: Array, load: Load, golden: int) -> int:
    """How many images are asked: the golden ones, and as many more as there is time and memory for."""
    batch = load.largest_batch
    each = SystemUnderTest(session, pool, load).milliseconds(batch) / batch / 1e3
    fitting = min(int(load.seconds / each), _ANSWER_BYTES // sum(map(sample_bytes, session.outputs)))
    return max(golden, min(golden + len(pool), max(_LEAST_IMAGES, fitting)))
