"""What the recipe `fast` reaches in how much time, beside `modern`, on Fashion-MNIST; and what each of its switches is worth.

Every run is a process of its own, timed from its start: imports, data, training and evaluation of every epoch count. Seeds are
interleaved: every seed runs all arms, in an order that turns. A run that stands in the results already is not repeated unless
`--again`, so the whole may be measured in pieces; every run says how much of the machine others used meanwhile, and a bar says
where it was much. The test split is looked at after every epoch and decides nothing.

    python benchmarks/train_recipes.py --arms fast --seeds 0,1,2       the accuracy of the recipe and its time
    python benchmarks/train_recipes.py --arms sprint,modern --seeds 0  the time to 92.5 %
    python benchmarks/train_recipes.py --arms long --seeds 0           any VGG within an hour
    python benchmarks/train_recipes.py --ablation                      each switch off, in pairs
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, ROOT, write_result
from scipy import stats

from vggdeploy.system.machine import machine

AIM = 0.925  # of test images right: the time to it is what recipes are compared by
BUSY = 0.05  # share of the cores that others used while a run lasted: above it the machine was not quiet
# Each arm: a recipe and what is changed in it.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "fast": ("fast", {}),
    "sprint": ("fast", {"epochs": 6}),
    "modern": ("modern", {}),
    "long": ("fast", {"width": 0.5, "image_size": 64, "hidden": 256, "epochs": 20}),
}
# The ablation: a smaller job, about as many steps as the sprint, on which every switch is turned off alone.
SMALL = {"per_class": 1000, "epochs": 5, "batch_size": 128, "precision": "bf16"}
ALL_ON = "all on"
SWITCHES: dict[str, dict[str, Any]] = {
    "Muon, not SGD with momentum": {"optimizer": "sgd", "lr": 0.1, "lr_rest": None, "weight_decay": 5e-4},
    "label smoothing": {"label_smoothing": 0.0},
    "flips": {"augment": ("shift",)},
    "shifts": {"augment": ("flip",)},
    "shifts, not crops": {"augment": ("flip", "crop")},
    "hidden layers of 128, not 512": {"hidden": 512},
    "BF16, not FP32": {"precision": "fp32"},
}


def one(name: str, changes: dict[str, Any], threads: int | None, tested: bool) -> None:
    """Train in this process, as `vggdeploy train` does; a line of JSON for every epoch, and one for the whole. What is not
    ``tested`` never opens the test split."""
    from vggdeploy.data.loaders import open_split
    from vggdeploy.system.machine import memory_kept
    from vggdeploy.train.loop import TrainOptions, train
    from vggdeploy.train.recipe_file import resolve_recipe
    from vggdeploy.train.record import TrainingStep
    from vggdeploy.train.run import Data

    def show(now: TrainingStep) -> None:
        if now.validation is not None:
            print(json.dumps({"epoch": now.epoch, "validation": now.validation, "test": now.test}), flush=True)

    with memory_kept(), tempfile.TemporaryDirectory() as directory:
        recipe = resolve_recipe(name, changes)
        data = None
        if not tested:
            train_split, validation = (
                open_split(recipe.dataset, s, recipe.preprocess()) for s in ("train", "validation")
            )
            data = Data(train_split, validation, None)
        done = train(
            recipe, output=Path(directory) / "ckpt", options=TrainOptions(threads=threads), data=data, on_step=show
        ).training
    kept = {
        field: getattr(done, field)
        for field in ("validation_accuracy", "test_accuracy", "images_per_second", "threads")
    }
    print(json.dumps({**kept, "epochs": len(done.history), "precision": done.recipe.precision}), flush=True)


def run(name: str, changes: dict[str, Any], *, threads: int | None = None, tested: bool = True) -> dict[str, Any]:
    """One run in a new process: its figures, the seconds since its start at the end of every epoch, and in all."""
    others = Others()
    request = json.dumps([name, changes, threads, tested])
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, __file__, "--one", request], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        epochs: list[dict[str, Any]] = []
        result: dict[str, Any] = {}
        for line in process.stdout:
            found = json.loads(line)
            if "epoch" in found:
                epochs.append({**found, "seconds": time.perf_counter() - start})
                scores = {key: found[key] for key in ("validation", "test") if found[key] is not None}
                print(f"  epoch {found['epoch']}: {epochs[-1]['seconds']:.0f} s, {scores}", flush=True)
            else:
                result = found
        _, status, usage = os.wait4(process.pid, 0)
        own = usage.ru_utime + usage.ru_stime
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not result:
        raise SystemExit(f"{name} with {changes} ended with {process.returncode}: its error stands above")
    return {
        **result,
        "recipe": name,
        "changes": changes,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": own,
        "others": others.share(own),
        "by_epoch": epochs,
    }


class Others:
    """How much of the machine everything else uses, from now on."""

    def __init__(self) -> None:
        self._start, self._busy = time.perf_counter(), _busy_seconds()

    def share(self, own: float) -> float:
        """Of all cores' time since then, less ``own`` seconds of CPU time."""
        passed = (time.perf_counter() - self._start) * (os.cpu_count() or 1)
        return max(0.0, _busy_seconds() - self._busy - own) / passed


def _busy_seconds() -> float:
    """All CPUs' seconds in user and kernel code since the machine started (proc(5))."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def seconds_to_aim(one_run: dict[str, Any]) -> float | None:
    """Until the end of the first epoch whose test accuracy reaches the aim."""
    return next((e["seconds"] for e in one_run["by_epoch"] if e["test"] >= AIM), None)


def interval(values: list[float]) -> tuple[float, float, float] | None:
    """Mean, and the two-sided 95 % interval of Student; None of fewer than two values."""
    if len(values) < 2:
        return None
    mean, half = float(np.mean(values)), float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
    return mean, mean - half, mean + half


def accuracy_bar(what: str, runs: list[dict[str, Any]], least: float, seconds: float) -> dict[str, Any]:
    """Met, if the lower end of the interval over seeds reaches ``least`` and every run stayed within the seconds."""
    found = interval([run["test_accuracy"] for run in runs])
    longest, quiet = max(run["seconds"] for run in runs), all(run["others"] <= BUSY for run in runs)
    mean = float(np.mean([run["test_accuracy"] for run in runs]))
    text = f"{mean:.2%}" if found is None else f"{mean:.2%} [{found[1]:.2%}, {found[2]:.2%}]"
    beside = "" if quiet else ", on a machine that was not quiet"
    return {
        "what": f"{what}, {len(runs)} seeds",
        "found": f"{text} in {longest:.0f} s at most{beside}",
        "target": f"≥ {least:.1%} within {seconds:.0f} s",
        "met": found is not None and found[1] >= least and longest <= seconds,
    }


def time_bar(runs: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any] | None:
    """`modern`'s time to the aim over that of `fast` with a short schedule, by seed; the interval is of the logarithm."""
    seeds = sorted(runs["modern"].keys() & runs["sprint"].keys())
    if not seeds:
        return None
    pairs = [(seconds_to_aim(runs["modern"][seed]), seconds_to_aim(runs["sprint"][seed])) for seed in seeds]
    missed = sum(ours is None for _, ours in pairs)
    # A run of `modern` that never got there took longer than it ran: its whole time is a bound in its favour.
    ratios = [
        (theirs or runs["modern"][seed]["seconds"]) / ours
        for seed, (theirs, ours) in zip(seeds, pairs, strict=True)
        if ours is not None
    ]
    found = interval([float(np.log(ratio)) for ratio in ratios])
    text = "no run got there" if not ratios else f"{float(np.exp(np.mean(np.log(ratios)))):.2f} ×"
    if found is not None:
        text += f" [{np.exp(found[1]):.2f}, {np.exp(found[2]):.2f}]"
    quiet = all(runs[arm][seed]["others"] <= BUSY for arm in ("modern", "sprint") for seed in seeds)
    return {
        "what": f"time to {AIM:.1%}, `modern` over `fast`, {len(seeds)} seeds",
        "found": text + (f"; {missed} of {len(seeds)} runs of `fast` missed it" if missed else "")
        + ("" if quiet else ", on a machine that was not quiet"),
        "target": "≥ 4 ×",
        "met": found is not None and not missed and float(np.exp(found[1])) >= 4,
    }  # fmt: skip


def bars(options: argparse.Namespace) -> int:
    known = [] if options.again else _known("train_recipes")
    runs: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in ARMS}
    for each in known:
        if (each["recipe"], each["changes"]) == _arm(each["arm"], each["changes"]["seed"]):  # of today's definition
            runs[each["arm"]][each["changes"]["seed"]] = each
    for number, seed in enumerate(options.seeds):
        turn = number % len(options.arms)
        for arm in [*options.arms[turn:], *options.arms[:turn]]:
            if seed not in runs[arm]:
                print(f"{arm}, seed {seed}", flush=True)
                name, changes = _arm(arm, seed)
                runs[arm][seed] = {"arm": arm, **run(name, changes)}
                _write(runs)  # a run that is over is not lost
    return _write(runs)


def _arm(arm: str, seed: int) -> tuple[str, dict[str, Any]]:
    name, changes = ARMS[arm]
    return name, {**changes, "seed": seed}


def _write(runs: dict[str, dict[int, dict[str, Any]]]) -> int:
    targets = []
    if runs["fast"]:
        targets.append(accuracy_bar("`fast`, quarter-width VGG-11-BN", [*runs["fast"].values()], 0.935, 360))
    if runs["long"]:
        targets.append(accuracy_bar("a wider VGG with `fast`", [*runs["long"].values()], 0.945, 3600))
    between = time_bar(runs)
    if between is not None:
        targets.append(between)
    flat = [run for arm in runs.values() for _, run in sorted(arm.items())]
    return write_result("train_recipes", {"aim": AIM, "runs": flat}, targets)


def ablation(options: argparse.Namespace) -> int:
    """Every switch off, on the same images, order and seeds as with all on. What is compared is the validation split."""
    known = {} if options.again else {(r["switch"], r["changes"]["seed"]): r for r in _known("train_ablation")}
    arms = {ALL_ON: {}, **SWITCHES}
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    asked = [(switch, seed) for seed in options.seeds for switch in arms]

    def measure(key: tuple[str, int]) -> dict[str, Any]:
        switch, seed = key
        changes = SMALL | arms[switch] | {"seed": seed}
        before = known.get(key, {})
        if before.get("changes") == json.loads(json.dumps(changes)):
            return before
        return {"switch": switch, **run("fast", changes, threads=1, tested=False)}

    with ThreadPoolExecutor(options.jobs) as pool:
        for key, found in zip(asked, pool.map(measure, asked), strict=True):
            runs[key] = found
            code = _write_ablation(runs)
    return code


def _write_ablation(runs: dict[tuple[str, int], dict[str, Any]]) -> int:
    rows = []
    for switch, changes in SWITCHES.items():
        seeds = [seed for name, seed in runs if name == switch and (ALL_ON, seed) in runs]
        if not seeds:
            continue
        pairs = [(runs[ALL_ON, seed], runs[switch, seed]) for seed in seeds]
        points = [100 * (on["validation_accuracy"] - off["validation_accuracy"]) for on, off in pairs]
        found = interval(points)
        rows.append(
            {
                "switch": switch,
                "without": changes,
                "points": points,
                "mean_points": float(np.mean(points)),
                "interval_points": found[1:] if found else None,
                "cpu_time_with_over_without": float(
                    np.exp(np.mean([np.log(on["cpu_seconds"] / off["cpu_seconds"]) for on, off in pairs]))
                ),
            }
        )
    print(
        "\n".join(["", "| switch | worth in points | its CPU time, × |", "|---|---|---|", *map(_line, rows)]),
        flush=True,
    )
    measured = {"job": SMALL, "switches": rows, "runs": [*runs.values()]}
    return write_result("train_ablation", measured, [], command="train_recipes.py --ablation")


def _known(name: str) -> list[dict[str, Any]]:
    """The runs that stand in a results file."""
    file = RESULTS / f"{name}.json"
    runs: list[dict[str, Any]] = json.loads(file.read_text())["measured"]["runs"] if file.exists() else []
    return runs


def _line(row: dict[str, Any]) -> str:
    low, high = row["interval_points"] or (float("nan"), float("nan"))
    points = f"{row['mean_points']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"| {row['switch']} | {points} | {row['cpu_time_with_over_without']:.2f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=lambda text: text.split(","), default=["fast", "sprint", "modern"])
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--again", action="store_true", help="forget the runs that stand in the results")
    parser.add_argument("--ablation", action="store_true", help="what each switch is worth, instead of the bars")
    parser.add_argument("--jobs", type=int, default=1, help="runs of the ablation beside each other, a thread each")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(*json.loads(options.one))
        return 0
    unknown = set(options.arms) - ARMS.keys()
    if unknown:
        parser.error(f"no such arm: {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    print(f"{machine().cpu}, {machine().cores} cores, load {os.getloadavg()[0]:.2f}", flush=True)
    return ablation(options) if options.ablation else bars(options)


if __name__ == "__main__":
    sys.exit(main())
