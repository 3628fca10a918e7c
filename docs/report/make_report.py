"""Make index.html: the public example of a report, from results that are committed.

python docs/report/make_report.py

The results are what their own `command` prints; to add one, commit its JSON and name it here. A test makes the page again
and compares what it says.
"""

from __future__ import annotations

from pathlib import Path

from vggdeploy.records.conclusions import ReportSummary
from vggdeploy.report.write import write_report

# From the repository's root, so that the page names its results as everybody does.
RESULTS = Path("benchmarks/results")
SOURCES = (RESULTS / "find_qps.json", RESULTS / "gpu_day.json")
TITLE = "An example: the digits' network under load, and VGG-16 on a GPU"


def make(target: Path) -> ReportSummary:
    return write_report(SOURCES, target, title=TITLE)


if __name__ == "__main__":
    make(Path(__file__).with_name("index.html"))
