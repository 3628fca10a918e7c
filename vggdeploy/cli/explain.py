"""``vggdeploy explain``: a bundle in plain words. Nothing is run: it tells what the manifest has, and what this machine can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vggdeploy.cli.options import BundlePath, Json
from vggdeploy.errors import counted

if TYPE_CHECKING:
    from vggdeploy.bundle import Bundle, Manifest, Variant
    from vggdeploy.engine.selection import Choice

_NAMED = 6  # classes that are named


def explain(bundle: BundlePath, json: Json = False) -> None:
    """Say in plain words what a bundle is, what was proven of it and where, and what to do next."""
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli import render
    from vggdeploy.cli.render import escape
    from vggdeploy.engine.selection import choices

    with render.progress(f"reading {bundle}"):
        opened = Bundle.open(bundle)
        found = choices(opened)
    sections = {
        "What it is": list(_identity(opened)),
        "What was proven": [render.with_path(text, bundle) for text in _proofs(opened.manifest)],
        "Where": list(_places(opened.manifest, found)),
    }
    steps = list(_steps(opened, found))
    if json:
        render.emit_json({"schema_version": 1, "bundle": str(bundle), "sections": sections, "next": steps})
        return
    for title, told in sections.items():
        render.out.print(f"[bold]{title}[/]")
        for text in told:
            render.sentence(escape(text), "  ")
    render.out.print("[bold]What to do next[/]")
    width = max(len(why) for why, _ in steps)
    for why, command in steps:
        render.out.print(f"  {why:<{width}}  {escape(command)}")


def _identity(bundle: Bundle) -> Iterator[str]:
    """What the network is, what it was trained on, what it takes, and what it gives."""
    manifest = bundle.manifest
    spec, prepare = manifest.spec, manifest.preprocess
    trained = f", trained on {manifest.dataset}" if manifest.dataset else ""
    yield (
        "A bundle: one directory with a trained model, files made of it for several runtimes, and the proof that they give "
        "the same answers."
    )
    yield f"{manifest.name} is the network {spec.arch}{_of_width(spec.width)}{trained}."
    colour = "grey" if prepare.mode == "L" else "colour"
    yield (
        f"It takes {colour} images of any size, and makes {spec.image_size} × {spec.image_size} pixels of them as it was done "
        "in training."
    )
    if spec.classes:
        rest = len(manifest.labels) - _NAMED
        named = ", ".join(manifest.labels[:_NAMED]) + (f" and {rest:,} more" if rest > 0 else "")
        known = f": {named}" if manifest.labels else ", which have no names here"
        yield f"It tells {spec.classes:,} classes apart{known}."
    else:
        yield "It has no classes: it turns an image into a vector, for searching and comparing."
    right = manifest.reference_accuracy
    if right is not None:
        yield (
            f"The FP32 PyTorch model had {right.hits:,} of {right.samples:,} test images of {right.dataset} right "
            f"({right.hits / right.samples:.1%}) when this was exported."
        )
    others = list(manifest.candidates())
    yield f"It holds {counted(len(others), 'file')} of that model: {_names(others) or 'none'}."
    if manifest.origin is not None:
        yield f"It was cut from the bundle {manifest.origin.bundle}, whose FP32 model it left behind."


def _of_width(width: float) -> str:
    return "" if width == 1 else f" at {width:g} of its width"


def _proofs(manifest: Manifest) -> Iterator[str]:
    """One sentence for the variants that one can be said of."""
    from vggdeploy.types import Verdict

    others = list(manifest.candidates())
    passed = [v for v in others if v.verdict is Verdict.PASS]
    if passed:
        yield f"{_names(passed)}: each was run from its shipped bytes beside the FP32 PyTorch model, and answers as it does."
    for v in passed:
        yield f"{v.name}: {_figures(v)}"
    for v in others:
        why = "; ".join(v.parity.reasons) if v.parity else ""
        if v.verdict is Verdict.FAIL:
            yield f"{v.name} FAILED, and is never taken: {why}"
        elif v.verdict is Verdict.INCONCLUSIVE:
            yield f"{v.name} gives the same numbers, but there were too few images to be sure how many answers change: {why}"
        elif v.verdict is Verdict.UNPROVEN:
            yield f"{v.name} is not proven yet: {why or 'it was not run'}"
    if not others:
        yield "Nothing: it holds only the PyTorch model."


def _figures(variant: Variant) -> str:
    """How close it is, in percent, and whether an answer changed."""
    record = variant.parity
    if record is None or not record.outputs:
        return "the figures are not in the manifest."
    farthest = max(o.relative_l2 for o in record.outputs)
    text = f"on {record.data or 'the golden images'}, its outputs differ by {_percent(farthest)} (relative L2)"
    if record.flips is not None:
        changed = f"{record.flips.flips:,} of {record.flips.samples:,} answers"
        text += f"; {changed} changed, at most {record.flips.upper:.2%} will (95% sure)"
    return f"{text}."


def _percent(share: float) -> str:
    return "less than 0.001%" if share < 1e-5 else f"{100 * share:.2g}%"


def _places(manifest: Manifest, found: Sequence[Choice]) -> Iterator[str]:
    """The machines of the proofs, and what this one can run."""
    from vggdeploy.system.machine import fingerprint

    hosts: dict[str, list[str]] = {}
    for v in manifest.candidates():
        if v.parity is not None and v.parity.outputs:
            host = v.parity.host
            hosts.setdefault(host.get("machine") or "a machine that was not recorded", []).append(
                f"{v.name} by {v.parity.backend} {host.get('version', '')}".rstrip()
            )
    for machine, names in hosts.items():
        where = f"this machine ({machine.split(',')[0]})" if machine == fingerprint() else machine
        yield f"Proven on {where}: {', '.join(names)}."
    usable = [c for c in found if c.usable]
    if usable:
        yield f"On this machine {usable[0].variant.name} is taken ({usable[0].reason})."
    for c in found:
        if not c.usable:
            yield f"{c.variant.name} cannot be used here: {c.reason}."
    yield "Elsewhere, what depends on the CPU or GPU repeats the golden pair when it is loaded, and is refused if it differs."


def _steps(bundle: Bundle, found: Sequence[Choice]) -> Iterator[tuple[str, str]]:
    """What to do and its command, the most useful first."""
    from shlex import quote

    from vggdeploy.bundle.trust import SIGNATURE_NAME
    from vggdeploy.types import Verdict

    root = quote(str(bundle.root))
    manifest = bundle.manifest
    usable = [c for c in found if c.usable]
    if any(c.usable and c.variant.verdict is not Verdict.PASS for c in found):
        yield "prove the rest", f"vggdeploy verify {root}"
    if usable and manifest.spec.classes:
        yield "classify an image", f"vggdeploy predict {root} IMAGE"
    elif usable:
        yield "make vectors", f"vggdeploy embed {root} IMAGE -o vectors.npy"
    if usable and not any(v.measured for v in manifest.variants):
        yield "measure its speed", f"vggdeploy bench {root} --record"
    if manifest.origin is None and not any(v.quantisation for v in manifest.variants) and manifest.spec.classes:
        yield "make it faster", f"vggdeploy optimize {root} --step int8"
    if usable:
        yield "serve it", f"vggdeploy serve {root}"
    if not (bundle.root / SIGNATURE_NAME).is_file():
        yield "sign it", f"vggdeploy sign {root} --new-key release.pem"
    yield "look inside", f"vggdeploy inspect {root}"


def _names(variants: Sequence[Variant]) -> str:
    return ", ".join(v.name for v in variants)
