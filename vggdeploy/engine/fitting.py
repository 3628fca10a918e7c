"""An engine that fits this machine: one of the bundle, else one that is built, proven and left in the bundle."""

from __future__ import annotations

from collections.abc import Callable

from vggdeploy.bundle import Bundle
from vggdeploy.engine.loading import build_proven, left_in_bundle
from vggdeploy.engine.selection import Standing, choices
from vggdeploy.errors import IncompatibleError
from vggdeploy.runtime.registry import Backend, default_device
from vggdeploy.types import Device, OnProgress, Precision, silent

PRECISION = Precision.FP16


def with_fitting_engine(
    bundle: Bundle,
    backend: Backend,
    device: Device | None = None,
    *,
    on_build: Callable[[str], None] = lambda text: None,
    on_progress: OnProgress = silent,
) -> Bundle:
    """The bundle, with an engine of ``backend`` that runs here. Where its library does not run, nothing is built.

    Args:
        on_build: told in a sentence that there is none, and what is built.

    Raises:
        IncompatibleError: the library does not run here, and another one that would is named.
        Errors of `build_proven` and `left_in_bundle`: a built engine that misses the golden pair is a ParityError.
    """
    from vggdeploy.build.choice import other_engine  # only here: most processes build nothing
    from vggdeploy.build.request import BuildPlan

    where = device or default_device(backend)
    here = backend.probe(where)
    if not here.runs:
        other = other_engine(backend, where)
        if other is not None:
            raise IncompatibleError(
                f"{backend.name} cannot run here: {here.reason}; {other.title} runs on {where}",
                f"type: --backend {other.name}",
            )
        return bundle
    # One that fits and failed parity stands: building the same again would hide it.
    if any(c.standing is not Standing.NOT_RUNNABLE for c in choices(bundle, backend=backend.name, device=where)):
        return bundle
    on_build(
        f"{bundle.root} has no engine that {backend.title} {here.version} runs on {here.device}: "
        f"building one in {PRECISION.upper()}, which stays in the bundle (--no-build: an error instead)"
    )
    plan = BuildPlan(engine=backend.name, precision=PRECISION, device=where)
    return left_in_bundle(bundle, build_proven(bundle, plan, on_progress=on_progress))
