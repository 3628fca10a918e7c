"""``vggdeploy sign`` and ``vggdeploy verify-signature``: who vouches for a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.options import BundlePath, Json
from vggdeploy.errors import UsageError, counted

PASSWORD = "VGGDEPLOY_KEY_PASSWORD"  # noqa: S105  # the name of a variable


def sign(
    bundle: BundlePath,
    key: Annotated[
        Path | None, typer.Option(help=f"A private key (PEM, P-256). ${PASSWORD} opens an encrypted one.")
    ] = None,
    new_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Make a key pair first: FILE, and the public key beside it, as release.pub."),
    ] = None,
    json: Json = False,
) -> None:
    """Sign every file of a bundle with a key file; the signature becomes its model.sig."""
    from vggdeploy.bundle import Bundle
    from vggdeploy.bundle.sign import sign_bundle
    from vggdeploy.cli import render
    from vggdeploy.cli.render import escape
    from vggdeploy.system.optional import require

    if (key is None) == (new_key is None):
        raise UsageError("signing needs exactly one key", "give --key FILE, or --new-key FILE to make one")
    require("model_signing", to="sign a bundle", extra="sign")
    password = os.environ.get(PASSWORD) or None
    public = None
    if new_key is not None:
        from vggdeploy.bundle.signature import new_key as make_key

        Bundle.open(bundle, trust=())  # no key is made for a bundle that cannot be signed
        public = make_key(new_key, password)
    report = sign_bundle(bundle, key or new_key or Path(), password=password, public_key=public)
    if json:
        render.emit_json(report)
        return
    render.out.print(
        f"[bold]{escape(str(bundle))}[/]: {counted(report.files, 'file')} signed by the key {report.key[:16]}…"
    )
    if public is not None:
        render.note(f"new key pair: {escape(str(new_key))} (keep it secret) and {escape(str(public))} (give it away)")
    render.next_steps(f"vggdeploy verify-signature {bundle} --key {public or 'PUBLIC_KEY'}")


def verify_signature(
    bundle: BundlePath,
    key: Annotated[list[Path] | None, typer.Option(help="A public key that is trusted (PEM); may be repeated.")] = None,
    policy: Annotated[Path | None, typer.Option(help="A policy file. $VGGDEPLOY_POLICY is heeded in any case.")] = None,
    json: Json = False,
) -> None:
    """Check that a trusted key signed exactly these files; exit code 1 when not."""
    from vggdeploy.bundle.sign import check_bundle
    from vggdeploy.bundle.trust import Trust, signer_rules
    from vggdeploy.cli import render
    from vggdeploy.cli.render import escape

    asked = signer_rules(Trust(key or None, policy) if key or policy else None)
    if not asked:
        raise UsageError("no key is trusted", "give --key PUBLIC_KEY or --policy FILE, or set VGGDEPLOY_POLICY")
    report = check_bundle(bundle, asked)
    if json:
        render.emit_json(report)
        return
    render.out.print(
        f"[green]✔[/] [bold]{escape(str(bundle))}[/]: {counted(report.files, 'file')}, signed by the key {report.key[:16]}…"
    )
