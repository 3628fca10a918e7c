"""The promise: what is shipped still computes what was trained. Torch-free; the reference is just another session."""

from vggdeploy.parity.compare import Reference, check_golden, compare, judge, reference_outputs
from vggdeploy.parity.metrics import OutputStats, accuracy_drop, clopper_pearson, top1

__all__ = [
    "OutputStats",
    "Reference",
    "accuracy_drop",
    "check_golden",
    "clopper_pearson",
    "compare",
    "judge",
    "reference_outputs",
    "top1",
]
