"""Limits of the caller's own, in place of the manifest's."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from vggdeploy.errors import UsageError
from vggdeploy.records import Thresholds


@dataclass(frozen=True)
class Limits:
    """As `Thresholds` has them; None for the manifest's.

    Raises:
        UsageError: one that is no distance, no cosine or no fraction.
    """

    relative_l2: float | None = None
    cosine: float | None = None
    flip_rate: float | None = None
    accuracy_drop: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            lowest = -1 if name == "cosine" else 0
            if value is not None and not lowest <= value <= 1:  # a NaN, too
                raise UsageError(
                    f"a limit of {value:g} for the {name.replace('_', ' ')}", f"give a number from {lowest} to 1"
                )

    @classmethod
    def in_percent(
        cls,
        *,
        tolerance: float | None = None,
        min_cosine: float | None = None,
        max_flips: float | None = None,
        max_accuracy_drop: float | None = None,
    ) -> Limits:
        """As the command line has them: flips in percent, the accuracy drop in percentage points.

        Raises:
            UsageError: one that makes no sense, in the units of the option.
        """
        percents = {"--max-flips": (max_flips, "percent"), "--max-accuracy-drop": (max_accuracy_drop, "points")}
        for option, (value, unit) in percents.items():
            if value is not None and not 0 <= value <= 100:
                raise UsageError(f"{option} {value:g}", f"give {unit} from 0 to 100, for example {option} 0.5")
        if tolerance is not None and not 0 <= tolerance <= 1:
            raise UsageError(f"--tolerance {tolerance:g}", "give a relative L2 distance from 0 to 1: --tolerance 0.001")
        if min_cosine is not None and not -1 <= min_cosine <= 1:
            raise UsageError(f"--min-cosine {min_cosine:g}", "give a cosine from -1 to 1: --min-cosine 0.999")
        return cls(
            relative_l2=tolerance,
            cosine=min_cosine,
            flip_rate=None if max_flips is None else max_flips / 100,
            accuracy_drop=None if max_accuracy_drop is None else max_accuracy_drop / 100,
        )

    def over(self, thresholds: Thresholds) -> Thresholds:
        """The manifest's thresholds with these in their place."""
        changed = {name: value for name, value in vars(self).items() if value is not None}
        return msgspec.structs.replace(thresholds, **changed)
