"""Known vulnerabilities of the locked packages, as pip-audit finds them. One that is not accepted is printed and fails.

``.ci/accepted.toml`` lists those that are accepted, each with a reason and the day until which that holds. Where the advisory
service does not answer, or knows none of the packages, one line says so, and nothing fails: it is not this project's to mend.
"""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ACCEPTED = ROOT / ".ci/accepted.toml"
LOCKS = ("all", "gpu", "test")  # these bring everything


def asked() -> dict[str, dict[str, Any]] | str:
    """Each package's advisories by the package's name, or why there are none."""
    files = [word for name in LOCKS for word in ("-r", str(ROOT / f"locks/{name}.txt"))]
    options = ["--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(["pip-audit", *files, *options], capture_output=True, text=True, check=False)
    try:
        answers = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return (done.stderr.strip() or "it printed nothing").splitlines()[-1][:300]
    found = {answer["name"]: answer for answer in answers if "vulns" in answer}
    return found or f"the service knows none of the {len(answers)} packages"


def accepted(today: dt.date) -> dict[tuple[str, str], str]:
    """Package and advisory → the reason, of those whose day has not passed."""
    entries = tomllib.loads(ACCEPTED.read_text()).get("accepted", [])
    return {(e["package"], e["id"]): e["reason"] for e in entries if e["until"] >= today and e["reason"]}


def main() -> int:
    found = asked()
    if isinstance(found, str):
        print(f"pip-audit has no answer, so nothing was audited: {found}")
        return 0
    reasons, failed = accepted(dt.datetime.now(dt.UTC).date()), 0
    for name, answer in sorted(found.items()):
        for advisory in answer["vulns"]:
            names = (advisory["id"], *advisory.get("aliases", ()))
            reason = next((reasons[name, one] for one in names if (name, one) in reasons), None)
            mended = ", ".join(advisory["fix_versions"]) or "none yet"
            state = f"accepted: {reason}" if reason else f"mended in: {mended}"
            print(f"{name} {answer['version']}: {' = '.join(names)}, {state}")
            failed += reason is None
    print(f"pip-audit knows {len(found)} of the locked packages; advisories that are not accepted: {failed}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
