"""Numbers as people compare them."""

from __future__ import annotations

import math


def figures(value: float) -> str:
    """Three significant digits: 0.0123, 4.56, 78.9, 1,230. What is below a hundred-thousandth has a power of ten."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    exponent = int(f"{value:.2e}".partition("e")[2])  # of the rounded value: 9.996 is 10.0
    if exponent < -5:
        return f"{value:.2e}"
    return f"{round(value, 2 - exponent):,.{max(0, 2 - exponent)}f}"
