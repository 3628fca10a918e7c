"""What the golden arrays are made with: shared by the script and the test, and free of torch."""

from __future__ import annotations

# mode, resize, crop, interpolation. Every file is prepared with the first two; `GEOMETRY` of some with all.
SPECS: dict[str, tuple[str, int, int, str]] = {
    "rgb": ("RGB", 20, 16, "bilinear"),
    "grey": ("L", 20, 17, "bilinear"),
    "up": ("RGB", 50, 45, "bilinear"),
    "all": ("RGB", 19, 19, "bilinear"),
    "one": ("L", 1, 1, "bilinear"),
    "nearest": ("RGB", 20, 15, "nearest"),
    "bicubic": ("RGB", 48, 31, "bicubic"),
    "lanczos": ("RGB", 21, 20, "lanczos"),
    "same": ("RGB", 23, 22, "bilinear"),
}
MODES = ("rgb", "grey")
GEOMETRY = {"rgb.png", "rgb-portrait.png", "rgb-square.png", "grey.png", "exif-6.png"}
