"""What a model's images and answers usually are, and whether those of now are others."""

from __future__ import annotations

from typing import Annotated

import msgspec

from vggdeploy.records.base import RESULT_VERSION, Record

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Population(Record, frozen=True, kw_only=True):
    """Counts of test images by what `vggdeploy.parity.population` measures of them; no image and no answer of one.

    ``counts``: statistic → how many images fell into each of its bins, which are the same for every bundle; ``class`` has a
    bin for each class. ``means``: of the statistics that are numbers.
    """

    data: str
    images: Annotated[int, msgspec.Meta(ge=1)]
    counts: dict[str, tuple[Count, ...]]
    means: dict[str, float]


class DriftStatistic(Record, frozen=True, kw_only=True):
    """One statistic of the requests since ``since``.

    ``against``: the images that it is compared with. ``evidence`` is the decimal logarithm of the capital that bets against
    "nothing has changed" have made of 1; from ``enough`` on it is an alarm, which stays. ``mean`` and ``usual`` are of now and
    of those images, None for what is no number.
    """

    name: str
    against: str
    observed: int
    mean: float | None
    usual: float | None
    evidence: float
    enough: float
    alarm: bool
    since_alarm: str = ""


class DriftReport(Record, frozen=True, kw_only=True):
    """Whether the requests of a server are others than the model was tested on: what ``GET /drift`` answers.

    ``level``: the chance that anything at all alarms, ever, where nothing has changed, at most. ``note`` says what is not
    compared, and why.
    """

    schema_version: int = RESULT_VERSION
    model: str
    digest: str
    since: str
    created: str
    level: float
    alarm: bool
    skipped: int
    statistics: tuple[DriftStatistic, ...]
    note: str = ""
