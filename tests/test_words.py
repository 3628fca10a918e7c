"""Words that readers stumbled over: numbers beside their nouns, and sentences that say something else than they mean."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import vggdeploy

ROOT = Path(vggdeploy.__file__).parent
REPOSITORY = Path(__file__).parents[1]
NOUN = re.compile(r"^ (images|threads|files|pictures)\b(?!/)")
# Not numbers, and numbers that a sentence refuses because they are no number of anything.
NO_NUMBER = {
    "colour",
    "now.split",
    "split",
    "DECIDES",
    "amount",
    "self.per_class",
    "self.max_images",
    "recipe.batch_size",
}
NO_NUMBER |= {"self.batch_size"}  # the sentence is about too small a batch, and says that two are needed

# Quoted in reports of people who did not understand them.
GONE = (
    r"let the deepest frozen block go",
    r"deepest block that is still frozen go",
    r"mends the rest",
    r"sensitive each layer is gets measured",
    r"makes no server",
)


def miscounted(source: str) -> Iterator[str]:
    """Numbers before a plural that do not go through `counted`; "3 of 8 images" may."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        parts = node.values
        for index, (value, text) in enumerate(pairwise(parts)):
            if not (isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant)):
                continue
            before = parts[index - 1] if index else None
            of = isinstance(before, ast.Constant) and before.value == " of " and index > 1
            told = ast.unparse(value.value)
            if NOUN.match(text.value) and not of and told not in NO_NUMBER and not told.startswith("figures("):
                yield f"{{{told}}}{text.value[:20]}"


def test_one_image_is_not_called_images() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {text}"
        for path in sorted(ROOT.rglob("*.py"))
        for text in miscounted(path.read_text(encoding="utf-8"))
    }
    assert found == set()


@pytest.mark.parametrize(
    ("line", "noticed"),
    [
        ('f"none of the {skipped} images can be used"', True),
        ('f"{n:,} threads, {data}"', True),
        ("f\"{counted(n, 'image')} of them\"", False),
        ('f"{bad} of {n} images cannot be used"', False),
        ('f"{rate} images/s"', False),
    ],
)
def test_a_number_before_a_plural_is_noticed(line: str, noticed: bool) -> None:
    assert bool(list(miscounted(line))) == noticed


@functools.cache
def texts() -> dict[Path, str]:
    """Each page on one line, strings that continue in a line of code put together."""
    return {path: re.sub(r'\s+|"\s*\n\s*f?"', " ", path.read_text(encoding="utf-8")) for path in pages()}


def pages() -> Iterator[Path]:
    yield from (path for path in ROOT.rglob("*") if path.suffix in (".py", ".js", ".html"))
    yield REPOSITORY / "README.md"
    # The page about words quotes some as they were before.
    yield from (path for path in (REPOSITORY / "docs").rglob("*.md") if path.name != "words.md")


@pytest.mark.parametrize("words", GONE)
def test_what_was_not_understood_is_gone(words: str) -> None:
    assert len(texts()) > 400
    assert [str(path.relative_to(REPOSITORY)) for path, text in texts().items() if re.search(words, text, re.I)] == []
