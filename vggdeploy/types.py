"""Small value types that every floor shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from vggdeploy.errors import UsageError

# Called by a function that takes long: the share that is done (0 to 1, None where it is unknown), and the phase in words.
OnProgress = Callable[[float | None, str], None]


def silent(share: float | None, phase: str) -> None:
    """The `OnProgress` of a caller who does not want to be told."""


@dataclass
class Steps:
    """The equal steps of one phase: counts them, and tells the share that is done."""

    on_progress: OnProgress
    total: int
    phase: str
    done: int = 0

    def __post_init__(self) -> None:
        self.advance(0)

    def more(self, count: int, phase: str) -> None:
        """There are so many steps more than was known, of another phase."""
        self.total += count
        self.phase = phase

    def advance(self, count: int = 1) -> None:
        self.done += count
        self.on_progress(min(self.done / max(self.total, 1), 1.0), self.phase)


class Precision(StrEnum):
    """The type a variant computes its convolutions and matrix products in.

    ``tf32`` is what a GPU makes of FP32 values whose factors may be rounded to 11 significant bits: of engines and of PyTorch,
    and never without being asked for. ``fp8`` is E4M3, 4 significant bits.
    """

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"

    @property
    def quantised(self) -> bool:
        """Whether values are rounded to ranges that were calibrated; then single layers may stay in FP32."""
        return self in (Precision.INT8, Precision.FP8)

    @property
    def stored(self) -> Precision:
        """What the graph and its weights are in: only a GPU's arithmetic makes TF32 of FP32."""
        return Precision.FP32 if self is Precision.TF32 else self


class Verdict(StrEnum):
    """What a comparison with the reference says.

    ``inconclusive``: nothing wrong was seen, and too few samples were looked at to promise the limit. Only of bounds (of flips,
    of a loss of accuracy): numbers that are compared either agree or do not.
    ``unproven``: this machine cannot run the variant, so nothing was compared. It is never a pass.
    """

    PASS = "pass"  # noqa: S105  # not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    UNPROVEN = "unproven"


class ImageSource(StrEnum):
    """Where the images come from that a variant is compared on.

    ``golden``: the pair in the bundle. Too few to bound flips, so none is judged. ``synthetic``: made where there is no
    data set. They give the golden pair its inputs, and say nothing more about real images. ``stress``: patterns at the ends
    of the pixels' range, which no data set holds.
    """

    GOLDEN = "golden"
    STRESS = "stress"
    REAL = "real"
    SYNTHETIC = "synthetic"


class SpeedOutcome(StrEnum):
    """What a ratio of speeds shows, by its 95% interval. ``not judged``: there is no interval, or a side does not count."""

    BASELINE = "baseline"
    FASTER = "faster"
    SLOWER = "slower"
    NO_DIFFERENCE = "no difference shown"
    NOT_JUDGED = "not judged"


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Name, NumPy dtype and shape of one graph input or output. ``"N"`` is the dynamic batch axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch axis."""
        return tuple(int(n) for n in self.shape[1:])


MAX_BATCH = 65_535  # a CUDA grid is no higher; a number beyond it is a slip of the hand


class BatchRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The batch sizes a variant accepts, and the one it is optimised for."""

    min: int = 1
    opt: int = 8
    max: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max <= MAX_BATCH:
            raise UsageError(
                f"batch range {self.min}:{self.opt}:{self.max} is not 1 ≤ min ≤ opt ≤ max ≤ {MAX_BATCH}",
                "give MIN:OPT:MAX, for example 1:8:32",
            )

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """``"1:8:32"`` → min, opt, max; a single number fixes all three."""
        parts = text.split(":")
        # isdecimal and not isdigit: int("²") is an error. Five digits: more is beyond MAX_BATCH, and may be beyond int().
        if len(parts) not in (1, 3) or not all(p.strip().isdecimal() and len(p.strip()) <= 5 for p in parts):
            raise UsageError(f"'{text}' is not a batch range", "give MIN:OPT:MAX, for example 1:8:32, or one number")
        sizes = [int(p) for p in parts]
        return cls(*(sizes * 3 if len(sizes) == 1 else sizes))

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


class Device(msgspec.Struct, frozen=True):
    """``cpu``, ``cuda`` or ``cuda:1``; in ONNX Runtime also ``cuda+tensorrt`` and ``cuda+rtx``: a GPU, through that."""

    kind: str = "cpu"
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        kind, colon, index = text.strip().lower().partition(":")
        kind = {"gpu": "cuda", "cuda+trt": "cuda+tensorrt"}.get(kind, kind)
        on_gpu = kind in ("cuda", "cuda+tensorrt", "cuda+rtx")
        good = kind == "cpu" or on_gpu if not colon else on_gpu and index.isdecimal() and len(index) <= 3
        if not good:  # "cpu:1" too: an index that nobody reads would be ignored in silence
            raise UsageError(
                f"the device '{text}' is unknown",
                "give cpu, cuda or cuda:INDEX (ONNX Runtime: also cuda+tensorrt, cuda+rtx)",
            )
        return cls(kind, int(index or 0))

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"{self.kind}:{self.index}"
