"""A page of neighbours: each image and those that look most like it, as one file that opens offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from PIL import Image

from vggdeploy.embed.nearest import About, Neighbour
from vggdeploy.errors import InputError
from vggdeploy.preprocess import prepare
from vggdeploy.spec import PreprocessSpec
from vggdeploy.system.files import atomic_write

_SIDE = 160  # pixels


def write_page(target: Path, found: Sequence[tuple[str, Sequence[Neighbour]]], *, about: About) -> None:
    """Write the page, whole or not at all; a picture that cannot be read any more is named in its place.

    Args:
        found: each image's path with its neighbours.
        about: what made the vectors.
    """
    parts = "".join(_section(path, neighbours) for path, neighbours in found)
    style = "".join(
        files(package).joinpath(name).read_text(encoding="utf-8")
        for package, name in (("vggdeploy.report", "page.css"), ("vggdeploy.embed", "nearest_page.css"))
    )
    made = escape(f"{about.bundle}, {about.output}: the cosine of the vectors stands below each image")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The nearest images</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>The nearest images</h1>
<p class="quiet">{made}</p>
{parts}
</main>
</body>
</html>
"""
    atomic_write(target, page.encode("utf-8", "backslashreplace"))


def _section(path: str, neighbours: Sequence[Neighbour]) -> str:
    items = "".join(f"<li>{_figure(one.image, f'{one.similarity:.3f}')}</li>" for one in neighbours)
    query = f'<li class="query">{_figure(path, "asked for")}</li>'
    return f"<section>\n<h2>{escape(_short(path))}</h2>\n<ol>{query}{items}</ol>\n</section>\n"


def _figure(path: str, told: str) -> str:
    caption = f'<b>{escape(told)}</b> <span title="{escape(path)}">{escape(_short(path))}</span>'
    picture = _thumbnail(path)
    shown = (
        f'<img src="data:image/png;base64,{picture}" alt="{escape(Path(path).name)}">'
        if picture
        else "<p>This file cannot be read any more.</p>"
    )
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _short(path: str) -> str:
    """The last two parts: a directory of images is often a class."""
    return "/".join(Path(path).parts[-2:])


def _thumbnail(path: str) -> str:
    """Base64 of a small PNG, decoded as the network's images are and cut to a square; "" where that cannot be done any more."""
    try:
        pixels = prepare(path, PreprocessSpec(resize=_SIDE, crop=_SIDE))
    except InputError:
        return ""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()
