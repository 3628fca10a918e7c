"""The best variant of a bundle, opened and proven on this machine; an engine that does not fit it can be rebuilt."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from vggdeploy.bundle import REFERENCE, Bundle, Variant
from vggdeploy.bundle.store import main_path
from vggdeploy.bundle.trust import Trust, signer_rules
from vggdeploy.engine.selection import measured_threads, select, unfit
from vggdeploy.errors import BundleError, IncompatibleError, ParityError, UsageError, VggdeployError, unknown_name
from vggdeploy.parity.compare import prove_at_load
from vggdeploy.parity.criteria import criteria_of
from vggdeploy.records import ParityRecord, Record, from_json, to_json
from vggdeploy.runtime import CheckedSession, backend_for, open_session
from vggdeploy.runtime.base import CompiledSession
from vggdeploy.runtime.registry import default_device
from vggdeploy.runtime.sessions import conditions, depends_on_machine
from vggdeploy.system.cache import Cache, cache_home, key_of
from vggdeploy.system.priority import behind
from vggdeploy.types import Device, OnProgress, Verdict, silent

if TYPE_CHECKING:
    from vggdeploy.build.request import BuildPlan

T = TypeVar("T")
VERIFY = ("first-load", "always", "never")
# With these a file system says that a bundle, or the directory that it lies in, cannot be written.
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class OpenVariant:
    """An entered session of a variant. ``bundle`` is the one on disk, with what was added to it."""

    bundle: Bundle
    variant: Variant
    session: CheckedSession
    device: Device


@dataclass(frozen=True)
class LoadOptions:
    """Which variant of a bundle is opened, where, and what it has to prove first: the arguments of `vggdeploy.load`."""

    backend: str = "auto"
    variant: str | None = None
    device: str | None = None
    threads: int | None = None
    verify: str = "first-load"
    rebuild: bool | OnProgress = False
    trust: Trust | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"the batch cannot be {self.batch}", "give how many images come at a time, for example 8")

    @property
    def where(self) -> Device | None:
        return Device.parse(self.device) if self.device else None

    @property
    def on_rebuild(self) -> OnProgress:
        """Who is told how far a rebuild is."""
        return self.rebuild if callable(self.rebuild) else silent


def beside(variant: Variant, device: Device) -> Callable[[Callable[[], T]], T]:
    """How to compute with a variant that nobody asks yet: behind those that are asked, where that leaves the threads that will
    answer as they are."""
    return behind if device.kind in backend_for(variant).own_threads_on else _at_once


def _at_once(work: Callable[[], T]) -> T:
    return work()


def open_best(
    path: str | os.PathLike[str], options: LoadOptions = LoadOptions(), *, gently: bool = False
) -> OpenVariant:
    """What `vggdeploy.load` opens; its errors.

    Args:
        gently: others are answered meanwhile; see `beside`.
    """
    if options.verify not in VERIFY:
        raise unknown_name("time to verify", options.verify, VERIFY)
    bundle = Bundle.open(path, only=(), trust=signer_rules(options.trust))
    where = options.where
    if options.rebuild:
        opened = _rebuild_first(bundle, options)
        if opened is not None:
            return opened
    refused: list[str] = []
    candidates = select(bundle, backend=options.backend, variant=options.variant, device=where, batch=options.batch)
    for candidate in candidates:
        on = where or default_device(backend_for(candidate))
        try:
            count = options.threads if options.threads is not None else measured_threads(candidate)
            return _open(bundle, candidate, on, count, options.verify, gently)
        except IncompatibleError:  # the library's own objection, to an engine that looked as if it fitted
            if not options.rebuild or candidate.build is None:
                raise
            return rebuild_engine(bundle, candidate, on, threads=options.threads, on_progress=options.on_rebuild)
        except ParityError as error:
            if options.backend != "auto" or options.variant:
                raise
            refused.append(error.cause)
    raise ParityError(
        f"no variant of {path} could be proven here: {'; '.join(refused)}", f"run: vggdeploy verify {path}"
    )


def _open(
    bundle: Bundle,
    variant: Variant,
    device: Device,
    threads: int | None,
    verify: str,
    gently: bool,
) -> OpenVariant:
    session = open_session(bundle, variant, device=device, threads=threads)
    with ExitStack() as keep:
        with bundle.checking_all(but=main_path(variant)):
            keep.enter_context(session)
        if verify == "always" or (verify == "first-load" and not _proven_here(bundle, variant, device)):
            code = session.unchecked
            sha256 = code.compiled_sha256 if isinstance(code, CompiledSession) else bundle.sha256(variant.path)
            proofs = Proofs(bundle, variant, sha256, conditions(variant, device))
            if verify == "always" or not proofs.passed():
                compute = beside(variant, device) if gently else _at_once
                proofs.keep(compute(lambda: _prove(session, bundle, variant, device, sha256)))
        keep.pop_all()  # it stays open
    return OpenVariant(bundle, variant, session, device)


def _prove(session: CheckedSession, bundle: Bundle, variant: Variant, device: Device, sha256: str) -> ParityRecord:
    """Run the golden pair.

    Raises:
        ParityError: the answers miss the thresholds.
    """
    record = msgspec.structs.replace(prove_at_load(session, bundle, variant, device), sha256=sha256)
    if record.verdict is not Verdict.PASS:
        raise ParityError(
            f"{variant.name} misses the golden pair on this machine: {'; '.join(record.reasons)}",
            f"{'build it again on this machine (--rebuild), or ' if variant.build else ''}load another variant",
        )
    return record


def _proven_here(bundle: Bundle, variant: Variant, device: Device) -> bool:
    """Whether the proof in the manifest holds on this machine: FP32 that is computed from a graph holds on every one; what
    depends on the machine has to have been proven under the conditions of this one. For code that was compiled here no
    bundle's word counts."""
    proof = variant.parity
    if variant.name == REFERENCE:
        return True
    if backend_for(variant).compiles:
        return False
    if proof is None or proof.verdict is Verdict.UNPROVEN:
        return False
    return not depends_on_machine(variant, device) or proof.host == conditions(variant, device)


def _rebuild_first(bundle: Bundle, options: LoadOptions) -> OpenVariant | None:
    """The engine that was asked for, rebuilt, when those in the bundle do not fit; None when there is nothing to do."""
    named = [options.variant] if options.variant else ()
    found = unfit(bundle, backend=options.backend, variants=named, device=options.where)
    if not found or _has_fitting_engine(bundle, options):
        return None
    where = options.where or default_device(backend_for(found[0]))
    return rebuild_engine(bundle, found[0], where, threads=options.threads, on_progress=options.on_rebuild)


def _has_fitting_engine(bundle: Bundle, options: LoadOptions) -> bool:
    try:
        chosen = select(bundle, backend=options.backend, variant=options.variant, device=options.where)
    except VggdeployError:  # nothing runs here yet: that is why something is rebuilt
        return False
    return any(candidate.build is not None for candidate in chosen)


def rebuild_unfit(
    bundle: Bundle,
    *,
    backend: str = "auto",
    variants: Sequence[str] = (),
    device: Device | None = None,
    on_progress: OnProgress = silent,
) -> Bundle:
    """Rebuild every engine that does not fit this machine, and prove it; returns the bundle as it stands then.

    Raises:
        Errors of `rebuild_engine`, and UsageError: the bundle cannot be written, so its engines stay as they are.
    """
    for variant in unfit(bundle, backend=backend, variants=variants, device=device):
        where = device or default_device(backend_for(variant))
        bundle = left_in_bundle(bundle, rebuild_engine(bundle, variant, where, on_progress=on_progress))
    return bundle


def left_in_bundle(bundle: Bundle, opened: OpenVariant) -> Bundle:
    """Close an engine that was just built; returns the bundle with it.

    Raises:
        UsageError: the bundle could not be written, so the engine is in the user's cache alone.
    """
    opened.session.__exit__(None, None, None)
    if opened.variant.name not in {v.name for v in opened.bundle.manifest.variants}:
        why = "has to stay as it was signed" if bundle.signer else "cannot be written"
        raise UsageError(
            f"{bundle.root} {why}, so it does not get the engine that was built for this machine: {opened.variant.name}",
            "work on a copy of the bundle, or take the engine from the cache: vggdeploy predict BUNDLE IMAGE --rebuild",
        )
    return opened.bundle


def rebuild_engine(
    bundle: Bundle,
    variant: Variant,
    device: Device,
    *,
    threads: int | None = None,
    on_progress: OnProgress = silent,
) -> OpenVariant:
    """`build_proven`, with the options of an engine that does not fit."""
    from vggdeploy.build.options import BuildOptions
    from vggdeploy.build.request import BuildPlan

    old = variant.build
    if old is None:
        raise UsageError(f"{variant.name} is no engine", "only TensorRT engines are rebuilt")
    plan = BuildPlan(
        engine=variant.format,
        precision=variant.precision,
        profiles=variant.profiles,
        options=BuildOptions.from_record(old.options, old.graph_batches),
        device=device,
    )
    return build_proven(bundle, plan, threads=threads, on_progress=on_progress)


def build_proven(
    bundle: Bundle, plan: BuildPlan, *, threads: int | None = None, on_progress: OnProgress = silent
) -> OpenVariant:
    """Build an engine for a GPU of this machine from the bundle's ONNX, prove it on the golden pair, and add it to the bundle.

    Where the bundle cannot be written, the engine stays in the user's cache, and is found there the next time. So it does
    where a signature was asked for: the bundle with another file in it would not be what was signed.

    Args:
        plan: its ``device`` is the GPU that the engine is built for, and runs on.

    Raises:
        Errors of `vggdeploy.build.engines.build_into`; ParityError: it misses the golden pair, and is not added.
    """
    from vggdeploy.build.cache import EngineCache  # only here: a load that builds nothing does not pay for it
    from vggdeploy.build.engines import add_engine, engine_variant, made_engine
    from vggdeploy.build.request import make_request

    request = make_request(bundle, plan)
    device = request.device
    with made_engine(bundle, request, cache=EngineCache(), on_progress=on_progress) as made:
        record = request.record(made.entry.seconds)
        fresh = engine_variant(request, made, record, request.name(bundle.manifest))
        session = open_session(bundle, fresh, device=device, threads=threads, file=made.file)
        with ExitStack() as keep:
            keep.enter_context(session)
            proof = _prove(session, bundle, fresh, device, made.entry.sha256)
            Proofs(bundle, fresh, made.entry.sha256, conditions(fresh, device)).keep(proof)
            fresh = msgspec.structs.replace(fresh, parity=proof)
            if not bundle.signer:
                with _unwritable_is_no_error():
                    added = add_engine(bundle, request, made, record, proof)
                    bundle, fresh = added.bundle, added.variant
            keep.pop_all()
    return OpenVariant(bundle, fresh, session, device)


@contextmanager
def _unwritable_is_no_error() -> Iterator[None]:
    """A bundle on a read-only file system, of another user, or mounted into a container stays as it is."""
    try:
        yield
    except UsageError:  # a mount point, or a directory of an image's layer
        return
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise


class _KeptProof(Record, frozen=True, kw_only=True):
    key: str
    record: ParityRecord


_MAX_BYTES = 2**20
LIMIT_BYTES = 64 * 2**20  # of all proofs


class Proofs:
    """The proofs of one variant's bytes on one machine.

    Args:
        sha256: of the bytes that run.
        host: what has to stay the same for a proof to hold: machine, GPU, driver, library and its version.
    """

    def __init__(self, bundle: Bundle, variant: Variant, sha256: str, host: Mapping[str, str]) -> None:
        manifest = bundle.manifest
        criteria = criteria_of(bundle, variant)
        about = {
            "sha256": sha256,
            "golden": [bundle.sha256(path) for path in manifest.golden.pair],
            "graph": to_json([manifest.spec, manifest.preprocess, manifest.input, manifest.outputs]).decode(),
            "variant": to_json([variant.format, variant.precision, variant.batch, variant.build]).decode(),
            "thresholds": to_json([criteria.thresholds, criteria.recorded]).decode(),
            "host": dict(host),
        }
        self._key = key_of(about)
        self._cache = Cache(cache_home() / "proofs", suffix=".json", limit=LIMIT_BYTES)
        self._sha256 = sha256

    def passed(self) -> bool:
        """Whether this was proven here before. A file that is damaged, that another user could have written, or that says
        anything else, is no proof."""
        data = self._cache.read(self._key, limit=_MAX_BYTES)
        if data is None:
            return False
        try:
            kept = from_json(data, _KeptProof, what="a kept proof")
        except BundleError:
            return False
        about = kept.key, kept.record.verdict, kept.record.sha256
        return about == (self._key, Verdict.PASS, self._sha256)

    def keep(self, record: ParityRecord) -> None:
        """Remember a pass. Where the cache cannot be written, the next load proves again."""
        if record.verdict is Verdict.PASS:
            self._cache.write(self._key, to_json(_KeptProof(key=self._key, record=record)))
