"""Whether an engine fits a machine, decided before the library sees a byte of it: from its record and its first bytes.

The rules are functions of an engine's record and of a description of the machine, so they need no GPU to be tried.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vggdeploy.bundle import BuildRecord, Bundle, Variant
from vggdeploy.errors import IncompatibleError, IntegrityError
from vggdeploy.runtime.gpu.cuda import Gpu, find_gpu
from vggdeploy.runtime.registry import ENGINES, library_title
from vggdeploy.runtime.tensorrt.lean import PACKAGES, find_lean
from vggdeploy.system.sealed import SealedFile
from vggdeploy.types import Device

_AMPERE = 80
# The first bytes of the libraries' files. (TensorRT's: also what torch-tensorrt looks for.)
_MAGIC = {"tensorrt": b"ftrt", "tensorrt_rtx": b"vtrt"}
# TensorRT for RTX 1.7, decoded by hand: magic, 0, layout, 0, total length, version, magic again, target mask.
_RTX_LAYOUT, _RTX_KNOWN = 2, (1, 7)
_RTX_HEADER = struct.Struct("<4s4xI4xQ4B4sI")
_RTX_TARGETS = {"sm75": 1, "sm80": 2, "sm86": 4, "sm89": 8, "sm120": 16, "sm121": 32}


@dataclass(frozen=True)
class Host:
    """What an engine meets: the library's version (None: not installed), the GPU with its driver (None: none), and the version
    of a lean runtime beside the library (None: none)."""

    version: str | None
    gpu: Gpu | None
    lean: str | None = None


@dataclass(frozen=True)
class Mismatch:
    """Why an engine does not fit, on one line, and what to do."""

    cause: str
    fix: str


def built_from(bundle: Bundle, variant: Variant) -> Variant | None:
    """The ONNX variant that an engine was built from, where the bundle still has it; None for everything else."""
    record = variant.build
    found = next((v for v in bundle.manifest.variants if record is not None and v.name == record.source), None)
    same = found is not None and record is not None and bundle.sha256(found.path) == record.source_sha256
    return found if same else None


def release(version: str) -> tuple[int, ...]:
    """``"10.13.3.9"`` → ``(10, 13, 3)``: what the libraries compare when they load an engine."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal() and len(part) <= 9)


def mismatch(variant: Variant, host: Host) -> Mismatch | None:
    """The first reasons for which the engine cannot run on ``host``; None when nothing speaks against it.

    What is not known (no GPU here, a record that is silent) speaks against nothing.
    """
    record = variant.build
    if record is None:
        return None
    wrong = [text for text in (_library(record, host), _gpu(record, host), _driver(record, host)) if text]
    if not wrong:
        return None
    name = library_title(record.library)
    where = f"for {', '.join(record.targets)}" + (f" ({record.gpu})" if record.gpu else "")
    here = [host.version] if host.version else []
    here += [f"{host.gpu.capability} ({host.gpu.name}), driver for CUDA {host.gpu.driver}"] if host.gpu else []
    return Mismatch(
        f"built by {name} {record.version} {where}; here: {', '.join(here)}: {'; '.join(wrong)}",
        f"build it for this machine: vggdeploy build BUNDLE --engine {variant.format} --precision {variant.precision}, "
        "or load it with --rebuild (rebuild=True)",
    )


def _library(record: BuildRecord, host: Host) -> str:
    if host.version is None or release(record.version) == release(host.version):
        return ""
    if "version_compatible" not in record.options:
        return "an engine loads only in the release that built it"
    if release(record.version) > release(host.version):
        return "a version-compatible engine loads in later releases, never in earlier ones"
    if host.lean is not None and release(host.lean) == release(record.version):
        return ""
    there = f"the one here is of {host.lean}" if host.lean else f"none is here: {' or '.join(PACKAGES)}"
    return f"a version-compatible engine needs the lean runtime of its own release ({there})"


def needs_lean(record: BuildRecord | None, version: str) -> bool:
    """Whether an engine that fits is run by the lean runtime of its own release, in a library of that ``version``."""
    return record is not None and "version_compatible" in record.options and release(record.version) != release(version)


def _gpu(record: BuildRecord, host: Host) -> str:
    if host.gpu is None or not record.targets:
        return ""
    here = host.gpu.capability
    level = record.options.get("hardware_compatible")
    if level == "ampere+":
        fits = here.removeprefix("sm").isdecimal() and int(here.removeprefix("sm")) >= _AMPERE
        return "" if fits else "it runs on Ampere and newer"
    if here not in record.targets:
        return f"it holds no code for {here}"
    if record.gpu and record.gpu != host.gpu.name and level is None:
        return "TensorRT tunes for one GPU model, and this is another (--hardware-compatible same-cc lifts that)"
    return ""


def _driver(record: BuildRecord, host: Host) -> str:
    """Within a major version CUDA drivers are compatible; code for a newer major is refused by an older driver."""
    if host.gpu is None or not record.driver:
        return ""
    built, here = (release(text)[:1] for text in (record.driver, host.gpu.driver))
    older = bool(built and here) and here < built
    return f"its driver was for CUDA {record.driver}, this one is older" if older else ""


def host_of(variant: Variant, device: Device) -> Host:
    """This machine, as the engine's library meets it. What is missing is None; why, the backend's probe says."""
    record = variant.build
    backend = next((b for b in ENGINES if record is not None and b.library == record.library), None)
    if backend is None:
        return Host(None, None)
    try:
        library = backend.import_library(to="run its engines")
    except IncompatibleError:
        return Host(None, None)
    version = str(library.__version__)
    lean = find_lean() if needs_lean(record, version) else None
    try:
        gpu = find_gpu(device)
    except IncompatibleError:
        gpu = None
    return Host(version, gpu, lean.version if lean else None)


def check_engine(variant: Variant, file: SealedFile) -> None:
    """Refuse a file that is certainly no engine of the library, the release or the GPUs that its record names.

    The bundle's hash was checked before: this finds what was put under a wrong name, or was damaged before it was hashed.

    Raises:
        IntegrityError: another magic; for TensorRT for RTX also another length, version or target mask.
    """
    record = variant.build
    if record is None or record.library not in _MAGIC:
        return
    wrong = head_error(record, file.head(_RTX_HEADER.size), file.size)
    if wrong:
        raise IntegrityError(
            f"{file.name} {wrong}", f"build it again: vggdeploy build BUNDLE --engine {variant.format}"
        )


def head_error(record: BuildRecord, head: bytes, size: int) -> str:
    """What is wrong with an engine file that starts with ``head`` and has ``size`` bytes; "" when nothing is."""
    name, magic = library_title(record.library), _MAGIC[record.library]
    if head[:4] != magic:
        return f"is no engine of {name}: it starts with {head[:4]!r}, not with {magic!r}"
    return next(_rtx_errors(record, head, size), "") if record.library == "tensorrt_rtx" else ""


def _rtx_errors(record: BuildRecord, head: bytes, size: int) -> Iterator[str]:
    if len(head) < _RTX_HEADER.size:
        yield f"is cut short: it has {size} bytes"
        return
    magic, layout, length, *version, again, mask = _RTX_HEADER.unpack(head[: _RTX_HEADER.size])
    known = release(record.version)[:2] == _RTX_KNOWN
    if layout != _RTX_LAYOUT or again != magic:
        # A header that we cannot read is certainly wrong only where the record names a release whose header we know.
        if known:
            yield "has a damaged header"
        return
    if length != size:
        yield f"has {size} bytes; its header says {length}"
    if release(record.version) != tuple(version[:3]):
        yield f"was built by {library_title(record.library)} {'.'.join(map(str, version))}; its record says {record.version}"
    targets = [target for target, bit in _RTX_TARGETS.items() if mask & bit]
    others = mask >> len(_RTX_TARGETS)  # GPUs of a release to come
    if (known and others) or (not others and set(targets) != set(record.targets)):
        found = [*targets, "unknown GPUs"] if others else targets
        yield f"holds code for {', '.join(found) or 'no GPU'}; its record says {', '.join(record.targets)}"
