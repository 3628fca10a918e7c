"""What a variant is judged by: the stricter of the manifest's limits and the package's ceiling, and its own record."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.records import Distance, Thresholds
from vggdeploy.types import ImageSource, Precision

RECORD_FACTOR = 3.0  # how many times the distance on record a variant may stand from the reference later
# Below these a multiple of the record says nothing: other kernels add in another order.
_ROUNDING = {
    Precision.FP32: 3e-6, Precision.TF32: 1e-4, Precision.FP16: 1e-4, Precision.BF16: 5e-4, Precision.FP8: 1e-3,
    Precision.INT8: 1e-3,
}  # fmt: skip


@dataclass(frozen=True)
class Criteria:
    """``recorded`` are the distances of the variant when it was made: empty where nothing could run it then."""

    precision: Precision
    thresholds: Thresholds
    recorded: tuple[Distance, ...] = ()

    def of(self, source: ImageSource) -> Thresholds:
        """The thresholds for images of a kind. Stress images lie outside of the ranges that INT8 and FP8 were calibrated
        on: there only the record can say what is usual."""
        if source is ImageSource.STRESS and self.precision.quantised:
            return msgspec.structs.replace(self.thresholds, relative_l2=1.0, cosine=-1.0)
        return self.thresholds

    def allowed(self, source: ImageSource) -> dict[str, float]:
        """Output → the largest relative L2 that the record allows on images of a kind.

        Other real images than those on record may be as far off as any that are.
        """
        same = [d for d in self.recorded if d.source == source]
        if source is ImageSource.REAL:
            same += [d for d in self.recorded if d.source is ImageSource.GOLDEN]
        limits: dict[str, float] = {}
        for d in same:
            limit = max(RECORD_FACTOR * d.relative_l2, _ROUNDING[self.precision])
            limits[d.output] = max(limit, limits.get(d.output, 0.0))
        return limits


def criteria_of(bundle: Bundle, variant: Variant) -> Criteria:
    """Those of the bundle, under the package's ceiling."""
    return Criteria(variant.precision, bundle.manifest.limits(variant.precision), variant.distances)
