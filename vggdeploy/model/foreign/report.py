"""What came of loading weights from elsewhere: what was used, what was not, and what had to be assumed. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from vggdeploy.errors import one_line
from vggdeploy.records import Record
from vggdeploy.spec import PreprocessSpec

# What keeps its fresh weights although the source has some: nothing, the last layer, or all linear layers.
KeepFresh = Literal["nothing", "head", "classifier"]
KEEP_FRESH: tuple[KeepFresh, ...] = get_args(KeepFresh)

# What can be given as weights, for errors.
SOURCES = "give a checkpoint directory, a .pth or .safetensors file, or a name such as torchvision:vgg16"


class InitReport(Record, frozen=True, kw_only=True):
    """One source of weights and one network.

    ``layout`` is ``checkpoint``, ``torchvision``, ``timm`` or ``sequential``; ``sha256`` is the file's. ``loaded``
    counts tensors, ``parameters`` the numbers in them. ``fresh`` are this network's tensors that were left as they
    were, ``unused`` what the source holds beyond what was loaded. ``preprocess`` is what the source is known to have
    been trained with.
    """

    source: str
    layout: str
    sha256: str
    loaded: int
    parameters: int
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    preprocess: PreprocessSpec | None = None

    def lines(self) -> list[str]:
        """The report as a user reads it, a fact a line, safe to print."""
        layout = "" if self.layout == "checkpoint" else f" (layout: {self.layout})"
        said = [f"weights: {self.loaded} tensors, {self.parameters:,} numbers from {self.source}{layout}"]
        if self.fresh:
            said.append(f"fresh, not from there: {shortened(self.fresh, 12)}")
        if self.unused:
            said.append(f"there, and not used: {shortened(self.unused, 12)}")
        said += [f"note: {note}" for note in self.notes]
        return [one_line(line) for line in said]


def shortened(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
