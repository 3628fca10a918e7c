"""``.ci/audit.py`` with a pip-audit that answers as the test says: the advisory service itself is not ours to command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
ADVISORY = {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "fix_versions": ["2.0"], "description": "…"}
BAD = {"name": "pillow", "version": "1.0", "vulns": [ADVISORY]}
GOOD = {"name": "numpy", "version": "2.0", "vulns": []}
UNKNOWN = {"name": "torch", "skip_reason": "not found"}


def entry(**changed: str) -> str:
    fields = {"package": '"pillow"', "id": '"CVE-2026-1"', "until": "9999-12-31", "reason": '"not reached"'} | changed
    return "[[accepted]]\n" + "".join(f"{name} = {value}\n" for name, value in fields.items())


def audit(home: Path, out: str, *, accepted: str = "", err: str = "", code: int = 0) -> tuple[int, str]:
    """The exit code and the output, where pip-audit prints ``out``."""
    (home / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/audit.py", home / ".ci")
    (home / ".ci/accepted.toml").write_text(accepted)
    program = home / "bin/pip-audit"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\nprint({out!r})\nprint({err!r}, file=sys.stderr)\nsys.exit({code})\n"
    )
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, home / ".ci/audit.py"], capture_output=True, text=True, check=False,
        env=os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout


def answer(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


@pytest.mark.parametrize(
    ("out", "err", "word"),
    [
        (
            "",
            "Traceback …\nConnectionError: the name cannot be resolved",
            "ConnectionError: the name cannot be resolved",
        ),
        ("<html>", "", "it printed nothing"),
        ("[]", "", "it printed nothing"),
        (answer(UNKNOWN, UNKNOWN), "", "knows none of the 2 packages"),
    ],
)
def test_a_service_that_does_not_answer_is_told_in_one_line_and_fails_nothing(
    out: str, err: str, word: str, tmp_path: Path
) -> None:
    code, said = audit(tmp_path, out, err=err, code=1)
    assert code == 0
    assert said.count("\n") == 1
    assert said.startswith("pip-audit has no answer, so nothing was audited: ")
    assert word in said


def test_a_known_vulnerability_is_printed_and_fails(tmp_path: Path) -> None:
    code, said = audit(tmp_path, answer(GOOD, BAD, UNKNOWN), code=1)
    assert code == 1
    assert "pillow 1.0: PYSEC-2026-1 = CVE-2026-1, mended in: 2.0\n" in said
    assert "knows 2 of the locked packages; advisories that are not accepted: 1" in said


def test_one_that_is_accepted_is_printed_with_its_reason_and_passes(tmp_path: Path) -> None:
    code, said = audit(tmp_path, answer(BAD), accepted=entry(), code=1)
    assert code == 0
    assert "accepted: not reached" in said


@pytest.mark.parametrize(
    "changed", [{"until": "2020-01-01"}, {"package": '"numpy"'}, {"id": '"CVE-2026-2"'}, {"reason": '""'}]
)
def test_a_reason_counts_for_its_package_its_advisory_and_until_its_day(
    changed: dict[str, str], tmp_path: Path
) -> None:
    assert audit(tmp_path, answer(BAD), accepted=entry(**changed), code=1)[0] == 1


def test_a_clean_answer_passes(tmp_path: Path) -> None:
    assert audit(tmp_path, answer(GOOD))[0] == 0
