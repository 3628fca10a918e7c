"""Which class of a data set is which class of the model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vggdeploy.errors import UsageError


def match_classes(
    labels: NDArray[np.int64], theirs: tuple[str, ...], ours: tuple[str, ...], classes: int, *, data: str, option: str
) -> tuple[NDArray[np.int64], str]:
    """The true class of each image as the model counts classes, and a note where names do not say that.

    A directory lists its classes by name; the model may have them in another order, and by the same names. Then the
    names decide. Where the names differ, the order is all there is.

    Args:
        labels: the classes as the data set counts them, ``int64 [N]``.
        theirs: the data set's names.
        ours: the model's names; may be empty.
        classes: how many the model has.
        data, option: how the error names the data set, and the option that gives it.

    Raises:
        UsageError: the data set has another number of classes.
    """
    if len(theirs) != classes:
        raise UsageError(
            f"{data} has {len(theirs)} classes, the model {classes}",
            f"name the data set that the model was trained on: {option}",
        )
    if not ours or ours == theirs:
        return labels, ""
    if same_names(theirs, ours):
        place = {label: index for index, label in enumerate(ours)}
        return np.array([place[label] for label in theirs], np.int64)[labels], ""
    odd = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return labels, (
        f"classes were matched by their order, because {data} names them otherwise than the model: "
        f"class {odd} is '{theirs[odd]}' there, and '{ours[odd]}' in the model"
    )


def same_names(theirs: tuple[str, ...], ours: tuple[str, ...]) -> bool:
    """Whether both have the same names, each once, in whatever order."""
    return len(set(ours)) == len(ours) and set(ours) == set(theirs)
