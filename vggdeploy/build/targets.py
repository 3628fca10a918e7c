"""GPU targets of TensorRT for RTX: it builds for GPUs that are not here, several generations in one engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vggdeploy.errors import BuildError, IncompatibleError, UsageError, unknown_name
from vggdeploy.runtime.tensorrt.api import title
from vggdeploy.runtime.tensorrt.rtx import known_targets
from vggdeploy.types import Precision

# NVIDIA's generations by compute capability, from the tables of the CUDA C++ Programming Guide; data centre GPUs
# included, so that one that TensorRT for RTX does not serve is answered by its name.
GENERATIONS: dict[str, tuple[str, ...]] = {
    "turing": ("sm75",),
    "ampere": ("sm80", "sm86", "sm87"),
    "ada": ("sm89",),
    "hopper": ("sm90",),
    "blackwell": ("sm100", "sm103", "sm120", "sm121"),
}
DEFAULT_TARGETS = ("ampere", "ada", "blackwell")
# The first compute capability whose tensor cores have the type; every GPU of `GENERATIONS` has those that are not named here.
_FIRST = {Precision.TF32: 80, Precision.BF16: 80, Precision.FP8: 89}
_SOLD_AS = {"a100": "sm80", "h100": "sm90", "h200": "sm90", "gh200": "sm90", "b200": "sm100", "gb200": "sm100"}


def default_targets(library: Any, precision: Precision) -> tuple[str, ...]:
    """Those of `DEFAULT_TARGETS` that have a precision."""
    return tuple(t for t in resolve_targets(library, DEFAULT_TARGETS) if _has(t, precision))


def check_targets(targets: Sequence[str], precision: Precision) -> None:
    """Refuse GPUs that lack a precision: one of them fails the whole build, and the libraries' message does not say it.

    Raises:
        IncompatibleError: some lack it; the remedy names those that do not.
    """
    lacking = [target for target in targets if not _has(target, precision)]
    if lacking:
        left = ",".join(target for target in targets if target not in lacking)
        raise IncompatibleError(
            f"{precision} needs a GPU from sm{_FIRST[precision]} on: {', '.join(lacking)} cannot compute in it",
            f"{f'leave them out: --target {left}' if left else 'name newer ones with --target'}, or use --precision fp16",
        )


def _has(target: str, precision: Precision) -> bool:
    number = target.removeprefix("sm")
    return not number.isdecimal() or int(number) >= _FIRST.get(precision, 0)


def resolve_targets(library: Any, names: Sequence[str]) -> tuple[str, ...]:
    """``("ada", "SM_120")`` → ``("sm89", "sm120")``: each once, ascending, so that equal sets build equal bytes.

    Args:
        names: compute capabilities (``sm89``, ``8.9``) and generations (``turing``, ``ampere``, ``ada``,
            ``blackwell``: those of their members that the library knows).

    Raises:
        UsageError: no name, an unknown one (with the closest match and the library's list), or a GPU that TensorRT
            for RTX does not serve.
    """
    known = known_targets(library)
    wanted: set[str] = set()
    for name in names:
        plain = _plain(name)
        members = GENERATIONS.get(plain, (plain,))
        served = [target for target in members if target in known]
        if not served and (plain in GENERATIONS or any(plain in group for group in GENERATIONS.values())):
            generation = next(g for g, group in GENERATIONS.items() if members[0] in group)
            raise UsageError(
                f"{title(library)} does not support '{name}' ({generation.capitalize()}, {', '.join(members)})",
                f"on a machine with that GPU: vggdeploy build BUNDLE --engine tensorrt; here: {', '.join(known)}",
            )
        if not served:
            usable = [generation for generation, group in GENERATIONS.items() if any(t in known for t in group)]
            raise unknown_name("GPU target", name, [*known, *usable])
        wanted.update(served)
    if not wanted:
        raise UsageError("no GPU target was named", f"give --target {','.join(DEFAULT_TARGETS)}")
    return tuple(target for target in known if target in wanted)


def _plain(name: str) -> str:
    """``SM_89``, ``sm-89``, ``8.9`` and ``compute_89`` → ``sm89``; ``H100`` → ``sm90``."""
    text = name.strip().lower().replace("_", "").replace("-", "").replace(".", "").removeprefix("compute")
    return _SOLD_AS.get(text, f"sm{text}" if text.isdigit() else text)


def set_targets(library: Any, config: Any, targets: Sequence[str]) -> None:
    """Put resolved targets on a builder's configuration.

    Raises:
        BuildError: the library refused one.
    """
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not config.set_compute_capability(getattr(library.ComputeCapability, target.upper()), index):
            raise BuildError(f"{title(library)} refused the GPU target {target}", "name others with --target")
