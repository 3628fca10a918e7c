"""What a server found when it asked a second model the questions of the first one's callers."""

from __future__ import annotations

from vggdeploy.records.base import RESULT_VERSION, Record
from vggdeploy.records.parity import FlipCount
from vggdeploy.types import Precision, Verdict


class ShadowSide(Record, frozen=True, kw_only=True):
    """One of the two: which bytes answered, and the milliseconds of its last thousand compared answers (None: there are none).

    The served one's times are of its callers' batches, with their waiting; the shadow's are of one image alone, at the lowest
    priority. They say what each took, and not which of them is faster.
    """

    model: str
    variant: str
    digest: str
    precision: Precision
    p50_ms: float | None = None
    p99_ms: float | None = None


class ShadowReport(Record, frozen=True, kw_only=True):
    """Whether a shadow may take over from the model that is served: what ``GET /shadow`` answers.

    ``compared`` requests were answered by both, each different input once; ``repeated`` are those that came before, ``shed``
    those that the shadow was not asked, since callers were waiting or it was behind. ``errors`` of the shadow count as flips.
    ``flips`` is None until something was compared; its bounds hold at every look, and ``verdict`` is that of parity, by
    ``limit``, the share of flips that is allowed.
    """

    schema_version: int = RESULT_VERSION
    served: ShadowSide
    shadow: ShadowSide
    sample: float
    since: str
    created: str
    compared: int
    repeated: int
    shed: int
    errors: int
    last_error: str = ""
    flips: FlipCount | None
    limit: float
    verdict: Verdict
    reasons: tuple[str, ...] = ()

    @property
    def may_take_over(self) -> bool:
        return self.verdict is Verdict.PASS
