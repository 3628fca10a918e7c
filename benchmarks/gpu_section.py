"""The README's words on what has run on a GPU, from the newest GPU day in results/.

    python benchmarks/gpu_section.py

It rewrites README.md between its two marks; a test holds that nobody edited what stands there.
"""

from __future__ import annotations

import re
from pathlib import Path

from vggdeploy.doctor.gpu_day.plan import NETWORKS, plan
from vggdeploy.records import from_json
from vggdeploy.records.gpu_day import GpuDay, NetworkRate, StepOutcome
from vggdeploy.report.gpu_days import NETWORK, failures, networks, speed

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/gpu_day.json"
BEGIN, END = "<!-- gpu day: begin -->\n", "<!-- gpu day: end -->\n"


def section(day: GpuDay) -> str:
    """Markdown: the verdict, what ran, what did not."""
    wrong, rates = failures(day), networks(day)
    gpu, torch = day.gpu.partition(", ")[0], day.packages.get("torch", "")
    verdict = f"{len(wrong)} readings failed." if wrong else "Nothing failed."
    best: dict[tuple[str, int], NetworkRate] = {}
    for rate in rates:
        at = rate.precision, rate.batch
        if rate.network == NETWORK and (at not in best or rate.images_per_second > best[at].images_per_second):
            best[at] = rate
    rows = [_row(rate) for at, rate in best.items() if at[1] in (1, 256)]
    done = {step.name for step in day.steps if step.outcome is StepOutcome.DONE}
    missing = [step.name for step in plan() if step.name not in done]
    speeds = "; ".join(speed(day))
    ratios = ", ".join(re.findall(r"(\d+\.\d+) ×", speeds))
    return "\n".join(
        [
            f"**On an {gpu}, {day.created[:10]}, PyTorch {torch}: {verdict}** {len(rates)} settings of "
            f"{len({rate.network for rate in rates})} of the {len(NETWORKS)} VGGs answer as FP64 does. "
            f"{speeds.replace('fastest', 'Fastest', 1)}.",
            "",
            "| the fastest, VGG-16, random weights, 224 px | batch | images/s | relative L2 to FP64 |",
            "|---|--:|--:|--:|",
            *rows,
            "",
            f"**Not taken, or not to its end, on that machine:** {', '.join(missing)}. From "
            "[`gpu_day.json`](benchmarks/results/gpu_day.json), by `vggdeploy doctor --gpu-day -o gpu-day.json`.",
            *([f"<!-- derived: {ratios}: images/s of both -->"] if ratios else []),
            "",
        ]
    )


def _row(rate: NetworkRate) -> str:
    name = f"{rate.precision.upper()}, {rate.by}"
    return f"| {name} | {rate.batch} | {rate.images_per_second:,.0f} | {rate.relative_l2:.1e} |"


def rewritten(readme: str) -> str:
    before, rest = readme.split(BEGIN)
    return before + BEGIN + section(from_json(RESULT.read_bytes(), GpuDay, what=RESULT.name)) + END + rest.split(END)[1]


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
