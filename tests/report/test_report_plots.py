"""The charts as data: every number is in them, names are told apart, and files are whole."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vggdeploy.errors import UsageError
from vggdeploy.report import plots
from vggdeploy.report.history import Point
from vggdeploy.report.page import theme


def values(chart: plots.Chart) -> list[dict[str, Any]]:
    """Every row of a chart's data, wherever in it Altair put it."""
    spec = chart.to_dict()
    found: list[dict[str, Any]] = []

    def look(part: Any) -> None:
        if isinstance(part, dict):
            found.extend(part["values"] if isinstance(part.get("values"), list) and "name" not in part else [])
            for value in part.values():
                look(value)
        elif isinstance(part, list):
            for value in part:
                look(value)

    look(spec)
    for rows in spec.get("datasets", {}).values():
        found.extend(rows)
    return [row for row in found if isinstance(row, dict)]


RUN = [
    Point(epoch=0.2, step=3, split="train", loss=2.0, accuracy=0.1),
    Point(epoch=1.0, step=15, split="train", loss=1.0, accuracy=None),
    Point(epoch=1.0, step=None, split="validation", loss=None, accuracy=0.5),
]


def test_every_value_of_a_run_is_in_its_panel_and_nothing_else() -> None:
    rows = values(plots.training_curves(RUN))
    assert sorted(row["loss"] for row in rows if "loss" in row) == [1.0, 2.0]
    assert sorted(row["accuracy"] for row in rows if "accuracy" in row) == [0.1, 0.5]


def test_a_cell_has_its_count_and_the_share_of_its_true_class() -> None:
    rows = values(plots.confusion_matrix(["a", "b"], [[3, 1], [0, 2]]))
    cells = {(row["class"], row["predicted"]): (row["images"], row["share"]) for row in rows}
    assert cells == {("a", "a"): (3, 0.75), ("a", "b"): (1, 0.25), ("b", "b"): (2, 1.0)}


def test_two_classes_of_one_name_stay_two() -> None:
    assert plots.distinct(["crane", "dog", "crane"]) == ["crane (0)", "dog", "crane (2)"]
    rows = values(plots.confusion_matrix(["crane", "crane"], [[1, 2], [3, 4]]))
    assert {row["images"] for row in rows} == {1, 2, 3, 4}


def test_too_many_classes_for_a_matrix_are_refused() -> None:
    n = plots.MATRIX_CLASSES + 1
    with pytest.raises(UsageError, match="101 classes"):
        plots.confusion_matrix([str(i) for i in range(n)], [[1] * n for _ in range(n)])


@pytest.mark.parametrize("title", ["", "a title"])
def test_a_png_is_drawn_on_white_and_is_readable(tmp_path: Path, title: str) -> None:
    plots.save_chart(plots.training_curves(RUN, title=title), tmp_path / "curves.png", title="x")
    image = Image.open(BytesIO((tmp_path / "curves.png").read_bytes())).convert("RGB")
    assert image.width > 1000
    pixels = np.asarray(image)
    assert (pixels[0, 0] == 255).all()
    for hexadecimal in theme(dark=False)["range"]["category"][:2]:  # a line of the colour of each split
        colour = [int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == colour).all(axis=2).sum() > 50


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither"):
        plots.save_chart(plots.training_curves(RUN), tmp_path / "curves.pdf", title="x")
    assert list(tmp_path.iterdir()) == []


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, "contrast ratio"."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_lines_and_letters_stand_out_from_their_ground(dark: bool) -> None:
    found = theme(dark=dark)
    assert all(contrast(colour, found["background"]) >= 3 for colour in found["range"]["category"])
    assert contrast(found["axis"]["labelColor"], found["background"]) >= 7


@pytest.mark.parametrize("dark", [False, True])
def test_a_count_is_readable_on_every_colour_of_its_cell(dark: bool) -> None:
    ramp = theme(dark=dark)["range"]["heatmap"]
    for step in range(101):
        share = step / 100
        place = share**0.5 * (len(ramp) - 1)  # the scale is a square root
        near = ramp[round(place)]
        ink = plots.INKS[0] if (share > plots.MIDDLE[dark]) != dark else plots.INKS[1]
        assert contrast(ink, near) >= 4, share
