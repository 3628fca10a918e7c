"""``vggdeploy push`` and ``vggdeploy pull``: a bundle on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.options import BundlePath, Force, Json

Address = Annotated[str, typer.Argument(metavar="hf://OWNER/NAME", help="A repository of the Hub, or of $HF_ENDPOINT.")]


def push(
    bundle: BundlePath,
    place: Address,
    license_: Annotated[
        str,
        typer.Option("--license", help="License of the weights, as the Hub names it: apache-2.0. Default: not stated."),
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public. Default: private.")] = False,
    message: Annotated[str, typer.Option(help="Commit message. Default: the bundle's name and digest.")] = "",
    json: Json = False,
) -> None:
    """Push a bundle to the Hugging Face Hub, with a card made from its proofs and its bill of materials."""
    from vggdeploy.bundle import Bundle
    from vggdeploy.cli import render
    from vggdeploy.cli.render import escape
    from vggdeploy.errors import counted
    from vggdeploy.package.hub.place import Place
    from vggdeploy.package.hub.push import push as run

    where = Place.parse(place)
    opened = Bundle.open(bundle)
    with render.progress("pushing"):
        report = run(opened, where, licence=license_, public=public, message=message)
    if json:
        render.emit_json(report)
        return
    signed = "signed" if report.signed else "[yellow]not signed[/]"
    render.out.print(
        f"[bold]{escape(report.target)}[/]: {counted(report.files, 'file')}, {signed}, commit {escape(report.commit[:12])}"
    )
    render.next_steps(f"vggdeploy pull {report.target}@{report.commit[:40]} -o DIRECTORY")


def pull(
    place: Annotated[str, typer.Argument(metavar="hf://OWNER/NAME[@REVISION]", help="A repository with a bundle.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The directory to write.")],
    key: Annotated[
        list[Path] | None, typer.Option(help="A public key (PEM) that must have signed it; may be repeated.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="A policy file. $VGGDEPLOY_POLICY is heeded in any case.")] = None,
    max_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest size of all files together.")] = "16GiB",
    force: Force = False,
    json: Json = False,
) -> None:
    """Pull a bundle from the Hugging Face Hub: only what its manifest names, and only as the policy allows."""
    from vggdeploy.build.options import parse_size
    from vggdeploy.bundle import MANIFEST_NAME
    from vggdeploy.bundle.trust import Trust, signer_rules
    from vggdeploy.cli import render
    from vggdeploy.cli.render import escape
    from vggdeploy.errors import counted
    from vggdeploy.package.hub.place import Place
    from vggdeploy.package.hub.pull import pull as run
    from vggdeploy.system.files import check_replaceable

    where = Place.parse(place)
    check_replaceable(output, marker=MANIFEST_NAME, overwrite=force)
    trust = signer_rules(Trust(key or None, policy) if key or policy else None)
    with render.progress("pulling") as tell:
        report = run(where, output, trust=trust, overwrite=force, max_bytes=parse_size(max_size), on_progress=tell)
    if json:
        render.emit_json(report)
        return
    signer = f"signed by the key {report.signer[:16]}…" if report.signer else "[dim]no signature was asked for[/]"
    render.out.print(
        f"[bold]{escape(report.path)}[/]: {counted(report.files, 'file')}, {render.size_text(report.bytes)}, of commit "
        f"{escape(report.commit[:12])}; {signer}"
    )
    render.next_steps(f"vggdeploy verify {report.path}")
