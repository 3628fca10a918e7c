"""The lock files of ``locks/``: each is what its extra asks for, to the byte."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCKS = ROOT / "locks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
NAMES = ["base", *EXTRAS]
MACHINES = [
    {
        "sys_platform": "linux",
        "platform_machine": machine,
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    for machine in ("x86_64", "aarch64")
    for python in ("3.11", "3.12", "3.13")
]
_PIN = re.compile(
    r"^(?P<pin>[a-z0-9-]+==[^;\\\n]+?(?: ; [^\\\n]+?)?)(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n",
    re.MULTILINE,
)


@functools.cache
def pins(name: str) -> list[Requirement]:
    return [Requirement(found["pin"]) for found in _PIN.finditer((LOCKS / f"{name}.txt").read_text())]


def versions(name: str, machine: dict[str, str]) -> dict[str, Version]:
    """What the lock installs on a machine."""
    chosen = [r for r in pins(name) if r.marker is None or r.marker.evaluate(machine)]
    found = {canonicalize_name(r.name): Version(str(r.specifier).removeprefix("==")) for r in chosen}
    assert len(found) == len(chosen), "two versions of one package"
    return found


def asked(name: str) -> Iterator[Requirement]:
    """What pyproject.toml asks for under that name; extras of our own are followed."""
    for text in EXTRAS.get(name, []):
        requirement = Requirement(text)
        if requirement.name != PROJECT["name"]:
            yield requirement
        for extra in requirement.extras if requirement.name == PROJECT["name"] else ():
            yield from asked(extra)
    yield from map(Requirement, PROJECT["dependencies"])


def holds(wanted: Requirement, pinned: dict[str, Version], machine: dict[str, str]) -> bool:
    """Whether a requirement is pinned within its range, or means nothing on that machine."""
    if wanted.marker is not None and not wanted.marker.evaluate({**machine, "extra": ""}):
        return True
    found = pinned.get(canonicalize_name(wanted.name))
    return found is not None and found in wanted.specifier


@pytest.mark.parametrize(
    ("wanted", "answer"),
    [("six>=1.5", True), ("six>=2", False), ("seven", False), ("seven; sys_platform == 'win32'", True)],
)
def test_a_requirement_that_no_pin_meets_is_seen(wanted: str, answer: bool) -> None:
    assert holds(Requirement(wanted), {"six": Version("1.17.0")}, MACHINES[0]) is answer


def test_every_extra_has_a_lock_and_every_lock_an_extra() -> None:
    assert sorted(p.stem for p in LOCKS.glob("*.txt")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_is_pins_with_hashes_and_names_no_place(name: str) -> None:
    """No index, no address, no path: where packages come from is the installing machine's own choice."""
    rest = _PIN.sub("", (LOCKS / f"{name}.txt").read_text())
    assert [line for line in rest.splitlines() if not line.startswith("#")] == []
    assert not re.search(r"https?:|--|@", rest)
    assert pins(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m['platform_machine']}-{m['python_version']}")
def test_a_lock_pins_what_pyproject_asks_for_within_its_range(name: str, machine: dict[str, str]) -> None:
    pinned = versions(name, machine)
    assert [str(wanted) for wanted in asked(name) if not holds(wanted, pinned, machine)] == []


@pytest.mark.parametrize("name", [n for n in NAMES if n != "gpu"])
def test_a_lock_pins_what_its_packages_ask_for_too(name: str) -> None:
    """By the metadata of the packages that are installed here in the pinned version."""
    machine = MACHINES[0]
    pinned = versions(name, machine)
    wrong = []
    for package, version in pinned.items():
        try:
            installed = distribution(package)
        except PackageNotFoundError:
            continue
        if Version(installed.version) != version:
            continue
        wishes = map(Requirement, installed.requires or [])
        wrong += [f"{package} wants {wanted}" for wanted in wishes if not holds(wanted, pinned, machine)]
    assert wrong == []


def test_all_locks_pin_one_version_of_a_package() -> None:
    for machine in MACHINES:
        whole = versions("all", machine)
        for name in NAMES:
            differing = {p for p, v in versions(name, machine).items() if whole.get(p, v) != v}
            assert differing == set(), name
