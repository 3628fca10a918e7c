"""The promise: what is shipped still computes what was trained. Torch-free; the reference is just another session."""

from vggdeploy.parity.bounds import accuracy_drop, clopper_pearson
from vggdeploy.parity.compare import check_golden, compare
from vggdeploy.parity.judge import judge
from vggdeploy.parity.metrics import OutputStats, top1
from vggdeploy.parity.reference import Reference, reference_outputs

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
