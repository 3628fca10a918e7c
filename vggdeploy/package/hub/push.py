"""Push a bundle: its files, a card made from its proofs, and its bill of materials, in one commit."""

from __future__ import annotations

import io
import os

from vggdeploy.bundle import MANIFEST_NAME, Bundle
from vggdeploy.bundle.trust import SIGNATURE_NAME, key_named_in, read_signature
from vggdeploy.errors import UsageError, one_line
from vggdeploy.package.bom import bill_of_materials
from vggdeploy.package.hub.card import BOM_NAME, CARD_NAME, model_card
from vggdeploy.package.hub.place import Place, hub, told
from vggdeploy.records import SCHEMA_VERSION, Record, to_json
from vggdeploy.system.files import safe_join
from vggdeploy.types import Verdict


class PushReport(Record, frozen=True, kw_only=True):
    """What ``vggdeploy push --json`` prints."""

    schema_version: int = SCHEMA_VERSION
    bundle: str
    target: str
    commit: str
    digest: str
    files: int
    signed: bool
    private: bool


def push(bundle: Bundle, place: Place, *, licence: str = "", public: bool = False, message: str = "") -> PushReport:
    """Write the bundle to a repository, which is made where there is none: a private one, unless ``public``.

    Args:
        bundle: opened with all its files checked.
        licence: of the weights, as the Hub names it (``apache-2.0``); left out of the card where none is given.

    Raises:
        UsageError: a revision, a licence that is no name, or a variant that failed parity.
        IntegrityError: the signature is a symbolic link.
        SignatureError: what stands in its place is no signature.
        VggdeployError: the hub cannot be reached, or says no.
    """
    if place.revision:
        raise UsageError("a bundle is pushed to the main branch", f"leave @{place.revision} out")
    if licence and not all(letter.isalnum() or letter in ".-" for letter in licence):
        raise UsageError(f"'{licence}' is no licence of the Hub", "for example --license apache-2.0")
    failed = [v.name for v in bundle.manifest.variants if v.verdict is Verdict.FAIL]
    if failed:
        raise UsageError(
            f"{', '.join(failed)} failed parity",
            f"push a slim bundle of what passed: vggdeploy package {bundle.root} --target slim -o DIRECTORY",
        )
    listed = {record.path for record in bundle.manifest.files}
    if taken := sorted(listed & {CARD_NAME, BOM_NAME, SIGNATURE_NAME}):
        # What push writes there would take its place, and nobody could pull the bundle again: its hash would be another.
        raise UsageError(
            f"the bundle has a file {taken[0]} of its own, and push writes one",
            f"push a slim bundle, which leaves it out: vggdeploy package {bundle.root} --target slim -o DIRECTORY",
        )
    library = hub()
    names = [MANIFEST_NAME, *(record.path for record in bundle.manifest.files)]
    # No hash of the manifest covers the signature: where it is a link, anybody's file would be published.
    signed = os.path.lexists(safe_join(bundle.root, SIGNATURE_NAME))
    written = {
        CARD_NAME: model_card(bundle, place, licence=licence, signed=signed).encode(),
        BOM_NAME: to_json(bill_of_materials(bundle)),
    }
    if signed:
        written[SIGNATURE_NAME] = read_signature(bundle.root)
        key_named_in(written[SIGNATURE_NAME])
    operations = [library.CommitOperationAdd(name, str(bundle.root / name)) for name in names]
    operations += [library.CommitOperationAdd(name, io.BytesIO(data)) for name, data in written.items()]
    about = message or f"{bundle.manifest.name} {bundle.manifest.digest[:12]}"
    with told(place, "pushed to"):
        api = library.HfApi()
        api.create_repo(place.repository, private=not public, exist_ok=True)
        done = api.create_commit(place.repository, operations, commit_message=one_line(about))
    return PushReport(
        bundle=str(bundle.root), target=str(place), commit=str(done.oid), digest=bundle.manifest.digest,
        files=len(operations), signed=signed, private=not public,
    )  # fmt: skip
