"""The table of ``vggdeploy inspect --layers``."""

from __future__ import annotations

from vggdeploy.records.layers import VariantLayers
from vggdeploy.report.tables import Column, Facts, Grid, grid

COLUMNS = (
    Column("index", "#", "d"),
    Column("layers", "layers", " + ".join, left=True),
    Column("kind", "kind", left=True),
    Column("precision", "type", left=True),
    Column("inputs", "in", left=True, wide=True),
    Column("outputs", "out", left=True),
    Column("weights", "weights", left=True),
    Column("tactic", "kernel", left=True, wide=True),
    Column("name", "name", left=True),
)


def layer_list(listed: VariantLayers) -> Grid:
    """A row for each layer, in order."""
    rows = [(Facts(index=number), layer) for number, layer in enumerate(listed.layers, 1)]
    return grid(COLUMNS, rows, f"{listed.variant}, by {listed.source}")
