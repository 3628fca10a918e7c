"""Every figure of README and docs stands in the results file that it cites, and the index says when each file was taken.

A figure is a number of two digits or more in a paragraph, list or table that cites a file of benchmarks/results, or one with a
unit, or in a table, in a section that does. It may be rounded, and given in another unit (ms for s, MiB for bytes, % for a
share, what is left of 100%). What was derived is declared on the page: <!-- derived: 235, 224: sums over the networks -->

    python .ci/figures.py            # exit 1 and a line for each that is not there
    python .ci/figures.py --write    # benchmarks/README.md says when each file was taken
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks/results")
INDEX = Path("benchmarks/README.md")
_CITED = re.compile(r"results/(\w+\.json)")
_CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
_DERIVED = re.compile(r"<!-- derived: ([^:]*):[^>]*-->")
_LINK = re.compile(r"\]\([^)]*\)")
_UNITS = r"×|%|ms|µs|s|min|KiB|MiB|GiB|MB|GB|TOP/s"
_FIGURE = re.compile(
    r"(?<![\w.\-–/])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![\w/]|\.\d| ?px| pixels| bits)" rf"(?:\s?({_UNITS}))?"
)
_IN_TEXT = re.compile(r"\d[\d,]*(?:\.\d+)?")
# A unit, and what a value of a file is multiplied with to be given in it.
_SCALES: dict[str, tuple[float, ...]] = {
    "%": (1, 100), "×": (1,), "TOP/s": (1, 1e-12),
    "µs": (1, 1e3, 1e6, 1e-3), "ms": (1, 1e3, 1e-6), "s": (1, 1e-3, 1e-9), "min": (1, 1 / 60),
    "KiB": (1, 2**-10), "MiB": (1, 2**-20), "GiB": (1, 2**-30), "MB": (1, 1e-6), "GB": (1, 1e-9),
}  # fmt: skip
_NO_UNIT = (1.0, 100.0, 1e3, 1e-3, 2**-20)  # the unit stands in a table's head
# Taken at commits that never landed: CI failed after them, and their files came back in another commit.
LOST = {"drift.json", "fashion.json", "fit_digits.json", "train_recipes.json"}
_COUNTED = 13  # smaller whole numbers are counts of the text, not measurements


def missing(text: str, results: Path) -> Iterator[str]:
    """The figures of a page that no results file cited beside them has."""
    for section in re.split(r"^#+ ", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE):
        blocks = re.split(r"\n\s*\n", section)
        cited = [_CITED.findall(block) for block in blocks]
        for index, block in enumerate(blocks):
            near = cited[index] or [name for names in cited for name in names]
            if not near:
                continue
            files = [results / name for name in dict.fromkeys(near) if (results / name).is_file()]
            values = [value for file in files for value in numbers(json.loads(file.read_bytes()))]
            values += [value for declared in _DERIVED.findall(section) for value in numbers(declared)]
            plain = _DERIVED.sub("", _LINK.sub("]", _CODE.sub("", block)))
            for found in _FIGURE.finditer(plain):
                # Away from the citation a whole number without a unit may be anything, and in a sentence any number.
                meant = cited[index] or found[3] or (found[2] and block.lstrip().startswith("|"))
                if meant and not _stands(found, values):
                    around = " ".join(plain[max(0, found.start() - 50) : found.end() + 20].split())
                    yield f"{found[0].strip()} is not in {', '.join(file.name for file in files)}: …{around}…"


def numbers(document: Any) -> Iterator[float]:
    """Every number of a JSON document, those in its texts included."""
    match document:
        case bool() | None:
            return
        case int() | float():
            yield float(document)
        case str():
            yield from (float(n.replace(",", "")) for n in _IN_TEXT.findall(document))
        case dict():
            for value in document.values():
                yield from numbers(value)
        case list():
            for value in document:
                yield from numbers(value)


def _stands(figure: re.Match[str], values: list[float]) -> bool:
    whole, part, unit = figure.groups()
    value, step = float(whole.replace(",", "") + (part or "")), 10.0 ** (1 - len(part or "."))
    if not part and value < _COUNTED:
        return True
    if not part and not unit and value >= 1000 and value % 100 == 0:
        step = 1000.0 if value % 1000 == 0 else 100.0  # a large round number
    forms = {abs(v) * scale for v in values for scale in (_SCALES[unit] if unit else _NO_UNIT)}
    if unit == "%":
        forms |= {abs(100 - 100 * v) for v in values}
    if unit == "×":
        forms |= {1 / v for v in values if v}
    return any(abs(form - value) <= 0.501 * step for form in forms)


def taken(name: str) -> str:
    """When a results file was taken, and of which commit: as the index says it."""
    record = json.loads((ROOT / RESULTS / name).read_bytes())
    commit = f"`{record['commit'][:7]}`" if record.get("commit") else "no commit"
    return f"{record['created'][:10]}, {'a commit that never landed' if name in LOST else commit}"


def with_dates(index: str) -> str:
    """The index's table with its last column as the files have it."""

    def dated(line: str) -> str:
        names = [name for name in _CITED.findall(line) if (ROOT / RESULTS / name).is_file()]
        if not names or not line.startswith("| `"):
            return line
        return f"|{'|'.join(line.strip('|').split('|')[:3])}| {'; '.join(map(taken, names))} |"

    return "".join(f"{dated(line)}\n" for line in index.splitlines())


def unknown_commits() -> Iterator[str]:
    """Results of commits that are not in this history; nothing where the history is not all there."""
    shallow = subprocess.run(
        ["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if shallow.stdout.strip() != "false":
        return
    for path in sorted((ROOT / RESULTS).glob("*.json")):
        commit = json.loads(path.read_bytes()).get("commit")
        known = commit and subprocess.run(
            ["git", "merge-base", "--is-ancestor", commit, "HEAD"], cwd=ROOT, capture_output=True, check=False
        )
        if commit and known.returncode and path.name not in LOST:
            yield f"{path.name} was taken at {commit}, which is not in this history"


def main() -> int:
    index = ROOT / INDEX
    if "--write" in sys.argv:
        index.write_text(with_dates(index.read_text(encoding="utf-8")), encoding="utf-8")
    pages = [ROOT / "README.md", index, *sorted((ROOT / "docs").rglob("*.md"))]
    faults = [
        f"{page.relative_to(ROOT)}: {fault}"
        for page in pages
        if page != index
        for fault in missing(page.read_text(encoding="utf-8"), ROOT / RESULTS)
    ]
    there = {path.name for path in (ROOT / RESULTS).glob("*.json")}
    for page in pages:
        named = set(_CITED.findall(page.read_text(encoding="utf-8")))
        faults += [f"{page.relative_to(ROOT)}: results/{name} does not exist" for name in sorted(named - there)]
        if page == index:
            faults += [f"{INDEX}: it does not name results/{name}" for name in sorted(there - named)]
    if with_dates(index.read_text(encoding="utf-8")) != index.read_text(encoding="utf-8"):
        faults.append(f"{INDEX}: a file was taken at another time than it says: python .ci/figures.py --write")
    faults += unknown_commits()
    print("\n".join(faults) or "every figure stands in the file that it cites")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
