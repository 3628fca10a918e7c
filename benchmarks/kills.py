"""SIGKILL at random moments in every verb that writes, and in the reload of a server: what is half-written, what is left over.

python benchmarks/kills.py --kills 500
python benchmarks/kills.py --kills 20 --verb export    # only this one; nothing is written
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import ROOT, write_result

sys.path.insert(0, str(ROOT / "tests"))
from attacks.killed_verbs import RELOADS, VERBS, count, prepare  # of the tests
from attacks.killing import Count

ALL = (*VERBS, *RELOADS)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=500)
    options.add_argument("--verb", choices=[verb.name for verb in ALL], help="only this verb; nothing is written")
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    verbs = [verb for verb in ALL if asked.verb in (None, verb.name)]
    parts = sum(verb.share for verb in verbs)
    counts = []
    with tempfile.TemporaryDirectory(prefix="vggdeploy-kills-") as name:
        given = prepare(Path(name))
        for verb in verbs:
            kills = math.ceil(asked.kills * verb.share / parts)
            try:
                found = count(verb, given, Path(name), kills=kills, seed=asked.seed)
            except RuntimeError as error:  # the verb does not work, killed or not
                found = Count(verb.name, failed=[str(error)])
            counts.append(found)
            _tell(found)
    kills, torn, left = (sum(numbers) for numbers in zip(*map(_numbers, counts), strict=True))
    if asked.verb:
        return 0 if not torn + left else 4
    measured = {"seed": asked.seed, "kills": kills, "verbs": [_record(one) for one in counts]}
    targets = [
        _target("half-written bundles and files after a kill", torn, kills),
        _target("files, processes and failures left over after the next run of the same verb", left, kills),
    ]
    return write_result("kills", measured, targets, command=f"kills.py --kills {asked.kills}")


def _numbers(one: Count) -> tuple[int, int, int]:
    return one.kills, len(one.torn), one.leftovers.total() + one.processes + len(one.failed)


def _tell(one: Count) -> None:
    print(f"{one.verb:<18} {one.kills} kills in {one.seconds:.0f} s, {one.in_draft} amid a draft: "
          f"{len(one.torn)} torn, {one.leftovers.total()} left over, {one.processes} processes", flush=True)  # fmt: skip
    for text in (*one.torn[:5], *one.failed[:5], *map(str, one.leftovers.most_common(8))):
        print(f"  {text}")


def _record(one: Count) -> dict[str, Any]:
    return {**dataclasses.asdict(one), "leftovers": dict(one.leftovers)}


def _target(what: str, found: int, kills: int) -> dict[str, Any]:
    return {"what": what, "found": f"{found} of {kills} kills", "target": "0", "met": found == 0}


if __name__ == "__main__":
    sys.exit(main())
