"""The colour and the mark of each backend: the same in all of every report, on a light and on a dark ground."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Look:
    """``mark`` is Vega's name of a symbol, and ``outline`` the same as an SVG path in a square of 20 by 20."""

    mark: str
    outline: str
    light: str
    dark: str


# Okabe & Ito 2008, "Color Universal Design", darkened on a light ground to three to one or more. A mark for each as well:
# no colour has to be seen.
_CIRCLE = Look("circle", "M10 2a8 8 0 1 0 0 16a8 8 0 1 0 0-16z", "#0072b2", "#56b4e9")
_SQUARE = Look("square", "M3 3h14v14H3z", "#d55e00", "#e69f00")
_CROSS = Look("cross", "M7 1h6v6h6v6h-6v6H7v-6H1V7h6z", "#007f5c", "#2fc49a")
_UP = Look("triangle-up", "M10 2l9 16H1z", "#a6558a", "#cc79a7")
_DOWN = Look("triangle-down", "M10 18l9-16H1z", "#5b4bb7", "#a79bf2")
_DIAMOND = Look("diamond", "M10 0l7.500 10L10 20 2.500 10z", "#4d5761", "#b8c0c8")
_LEFT = Look("triangle-left", "M1 10L17 1v18z", "#7a6000", "#f0e442")
_RIGHT = Look("triangle-right", "M19 10L3 1v18z", "#b3261e", "#ff8a80")

_LOOKS = {
    "onnxruntime": _CIRCLE,
    "openvino": _SQUARE,
    "tensorrt": _CROSS,
    "torchscript": _UP,
    "torch-export": _DOWN,
    "torch": _DIAMOND,
    "tensorrt-rtx": _LEFT,
    "aoti": _RIGHT,
}
PALETTE = (_CIRCLE, _SQUARE, _CROSS, _UP, _LEFT, _DOWN, _RIGHT, _DIAMOND)


def looks(groups: Iterable[str]) -> dict[str, Look]:
    """A look for each group: a backend's own, and for names that are no backend the next of the palette."""
    names = list(dict.fromkeys(groups))
    others = [name for name in names if name not in _LOOKS]
    return {name: _LOOKS[name] if name in _LOOKS else PALETTE[others.index(name) % len(PALETTE)] for name in names}


def mark_html(backend: str) -> str:
    """The backend's mark in its colour; the name beside it says the same to a screen reader."""
    look = looks([backend])[backend]
    name = escape(backend) if backend in _LOOKS else "other"
    return f'<svg class="mark {name}" viewBox="0 0 20 20" aria-hidden="true"><path d="{look.outline}"/></svg>'


def mark_css(*, dark: bool) -> str:
    """The colours of `mark_html`."""
    every = {**_LOOKS, "other": _CIRCLE}
    return " ".join(f".mark.{name} {{ fill: {look.dark if dark else look.light}; }}" for name, look in every.items())
