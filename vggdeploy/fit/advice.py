"""What would make the network better: more time, and more images of which class. Estimates, and said to be such."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vggdeploy.records.fit import FitTrial

_LEAST_EXPONENT, _MOST_EXPONENT = 0.1, 1.0  # of learning curves of images: Hestness et al. 2017, section 4
_SHOWN = 3
_FEWER_ERRORS = 0.5  # the share of a class's errors that is to be left


def more_time(winner: FitTrial, tried: int) -> str:
    """What three times the training would bring the winner, by how its errors fell from training to training."""
    errors = [1 - rung.hits / rung.samples for rung in winner.rungs]
    if len(errors) < 3:
        return (
            f"The winner was trained {len(errors)} of 3 times: more time would train it to the end, and try more than "
            f"{tried} networks."
        )
    before, last = errors[-3] - errors[-2], errors[-2] - errors[-1]
    if last <= 0 or before <= 0:
        return "The winner's last training made no fewer errors: more time would go into other networks."
    ratio = min(last / before, 0.7)
    return (
        f"An estimate: three times the training would bring the winner about {100 * last * ratio:.1f} points (its last "
        f"two trainings brought {100 * before:.1f} and {100 * last:.1f}); more networks than the {tried} that were tried "
        "may bring more."
    )


def exponent_of(images: Sequence[int], errors: Sequence[float]) -> float | None:
    """b of error = a · images^-b through two points or more, by least squares of logarithms; None without a fall.

    Clipped to what Hestness et al. 2017 found on images: few points of a noisy curve are no better than that.
    """
    known = [(n, e) for n, e in zip(images, errors, strict=True) if n > 0 and e > 0]
    if len({n for n, _ in known}) < 2:
        return None
    x, y = np.log([n for n, _ in known]), np.log([e for _, e in known])
    slope = float(np.polyfit(x, y, 1)[0])
    return min(max(-slope, _LEAST_EXPONENT), _MOST_EXPONENT) if slope < 0 else None


def images_advice(
    answers: NDArray[np.int64],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    training: Sequence[int],
    exponent: float | None,
) -> tuple[str, ...]:
    """Which classes to collect images of: those with the most errors, and how many would halve them.

    Args:
        answers, labels: of the validation images ``[N]``.
        training: images of each class that a network was trained on.
        exponent: of the learning curve; None where it is not known: then no number is named.
    """
    wrong = np.bincount(labels[answers != labels], minlength=len(classes))
    counts = np.bincount(labels, minlength=len(classes))
    told = []
    for label in np.argsort(-wrong, kind="stable")[:_SHOWN]:
        if not wrong[label]:
            break
        others = np.bincount(answers[(labels == label) & (answers != label)], minlength=len(classes))
        confused = classes[int(others.argmax())]
        amount = "more"
        if exponent is not None:
            amount = f"about {_rounded(training[label] * (_FEWER_ERRORS ** (-1 / exponent) - 1))} more"
        told.append(
            f"Collect {amount} images of {classes[label]}: {wrong[label]} of its {counts[label]} validation images are "
            f"wrong, most of them taken for {confused}."
        )
    if told and exponent is not None:
        told.append(
            f"The numbers are those that would halve a class's errors if they fall as images^-{exponent:.2f}, which the "
            "learning curve of the winner suggests."
        )
    return tuple(told)


def _rounded(number: float) -> int:
    """Upwards to one digit: the estimate is no better."""
    number = min(max(number, 1.0), 1e9)
    scale = 10.0 ** math.floor(math.log10(number))
    return int(math.ceil(number / scale) * scale)
