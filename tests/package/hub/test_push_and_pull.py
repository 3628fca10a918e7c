"""A bundle on a hub: what is pushed comes back, and what a hub or its owner does to it is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

pytest.importorskip("huggingface_hub")


from package.hub.stub_hub import COMMIT, Repository, stub_hub

from vggdeploy.bundle import MANIFEST_NAME, Bundle
from vggdeploy.bundle.manifest import FileRecord, parse_manifest, seal
from vggdeploy.bundle.sign import sign_bundle
from vggdeploy.bundle.signature import new_key
from vggdeploy.bundle.trust import SIGNATURE_NAME, Trust, signer_rules
from vggdeploy.cli.app import run
from vggdeploy.errors import BundleError, IntegrityError, SignatureError, UsageError, VggdeployError
from vggdeploy.package.hub.card import BOM_NAME, CARD_NAME, model_card
from vggdeploy.package.hub.place import Place
from vggdeploy.package.hub.pull import pull
from vggdeploy.package.hub.push import push
from vggdeploy.system.files import sha256_of

PLACE = Place("me/digits")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Repository]]:
    """The library asks the stub: the environment names it, as for any other hub."""
    with stub_hub() as (url, repositories):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield repositories


@pytest.fixture
def pushed(hub: dict[str, Repository], bundle_dir: Path) -> Repository:
    repository = Repository()
    for path in bundle_dir.rglob("*"):
        if path.is_file():
            repository.files[path.relative_to(bundle_dir).as_posix()] = path.read_bytes()
    hub[PLACE.repository] = repository
    return repository


def altered(repository: Repository, *records: FileRecord) -> None:
    """A manifest that fits itself, and lists these files beside its own."""
    manifest = parse_manifest(repository.files[MANIFEST_NAME], where="here")
    repository.files[MANIFEST_NAME] = seal(msgspec.structs.replace(manifest, files=(*manifest.files, *records)))


def nothing_stays(home: Path) -> None:
    assert [path for path in home.iterdir() if path.name not in ("release.pem", "release.pub")] == []


def test_what_is_pushed_comes_back_as_it_was_with_a_card_and_a_bill(
    hub: dict[str, Repository], bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["push", str(bundle_dir), str(PLACE), "--license", "apache-2.0", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["private"], report["signed"], report["commit"]) == (True, False, COMMIT)
    repository = hub[PLACE.repository]
    assert repository.private is True
    assert {CARD_NAME, BOM_NAME, MANIFEST_NAME} < repository.files.keys()
    assert json.loads(repository.files[BOM_NAME])["bomFormat"] == "CycloneDX"
    assert run(["pull", f"{PLACE}@main", "-o", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["commit"] == COMMIT
    came = Bundle.open(tmp_path / "b")
    assert came.manifest == Bundle.open(bundle_dir).manifest
    for record in came.manifest.files:
        assert sha256_of(tmp_path / "b" / record.path) == record.sha256
    assert not (tmp_path / "b" / CARD_NAME).exists()
    assert "Bearer hf_secret" in repository.tokens
    assert run(["pull", str(PLACE), "-o", str(tmp_path / "b")]) == 2  # it stands there
    assert run(["pull", str(PLACE), "-o", str(tmp_path / "b"), "--force"]) == 0


def test_the_card_says_what_was_proven_and_nothing_that_was_not(bundle: Bundle) -> None:
    card = model_card(bundle, PLACE, licence="apache-2.0")
    _, head, text = card.split("---\n", 2)
    fields = yaml.safe_load(head)
    assert (fields["license"], fields["pipeline_tag"]) == ("apache-2.0", "image-classification")
    known = bundle.manifest.reference_accuracy
    for variant in bundle.manifest.variants:
        assert f"| {variant.name} | ".replace("_", "\\_") in text
    assert f"{known.hits:,} of {known.samples:,} test images" in text if known else "Not measured" in text
    assert "CC BY 4.0" in text
    assert bundle.manifest.digest in text
    assert "license" not in yaml.safe_load(model_card(bundle, PLACE).split("---\n")[1])


def test_names_from_strangers_are_text_in_a_card(bundle: Bundle) -> None:
    evil = '"]\n---\n<img src=x onerror=alert(1)>[click](http://evil)'
    manifest = msgspec.structs.replace(bundle.manifest, name=evil, dataset=evil)
    card = model_card(Bundle(bundle.root, manifest), PLACE)
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "vggdeploy"
    text = card.split("---\n", 2)[2]
    assert "<img" not in text
    assert "[click](" not in text


@pytest.mark.parametrize("name", ["../../escape", "/tmp/escape", "a/../../escape", "a\\..\\b", "C:/x", "a//b"])  # noqa: S108
def test_a_name_that_leads_outside_is_refused_before_it_is_asked_for(
    pushed: Repository, tmp_path: Path, name: str
) -> None:
    altered(pushed, FileRecord(path=name, sha256=hashlib.sha256(b"x").hexdigest(), size=1))
    pushed.files[name] = b"x"
    with pytest.raises(IntegrityError, match="leaves its directory"):
        pull(PLACE, tmp_path / "home/b")
    assert pushed.asked == [MANIFEST_NAME, SIGNATURE_NAME]
    assert not list(tmp_path.rglob("escape"))
    nothing_stays(tmp_path / "home")


@pytest.mark.parametrize("name", [MANIFEST_NAME, SIGNATURE_NAME])
def test_a_file_that_would_replace_the_manifest_is_refused(pushed: Repository, tmp_path: Path, name: str) -> None:
    altered(pushed, FileRecord(path=name, sha256="0" * 64, size=1))
    with pytest.raises(BundleError):
        pull(PLACE, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_truncated_download_leaves_nothing(pushed: Repository, tmp_path: Path) -> None:
    name = max(pushed.files, key=lambda n: len(pushed.files[n]))
    pushed.lengths[name] = len(pushed.files[name]) // 2
    with pytest.raises(VggdeployError):
        pull(PLACE, tmp_path / "b")
    nothing_stays(tmp_path)
    pushed.lengths.clear()
    pushed.files[name] = pushed.files[name][:-1]  # whole for HTTP, and short for the manifest
    with pytest.raises(IntegrityError, match="cut short"):
        pull(PLACE, tmp_path / "b")
    nothing_stays(tmp_path)


def test_other_bytes_and_missing_files_are_refused(pushed: Repository, tmp_path: Path) -> None:
    name = max(pushed.files, key=lambda n: len(pushed.files[n]))
    whole = pushed.files[name]
    pushed.files[name] = bytes([whole[0] ^ 1]) + whole[1:]
    with pytest.raises(IntegrityError, match="other bytes"):
        pull(PLACE, tmp_path / "b")
    del pushed.files[name]
    with pytest.raises(IntegrityError, match="which its manifest names"):
        pull(PLACE, tmp_path / "b")
    nothing_stays(tmp_path)


def test_a_file_without_an_end_is_given_up_at_the_first_byte_too_many(pushed: Repository, tmp_path: Path) -> None:
    name = "golden/inputs/image.npy"
    assert name in pushed.files
    pushed.extra[name] = 2**30
    with pytest.raises(IntegrityError, match="longer than"):
        pull(PLACE, tmp_path / "b")
    nothing_stays(tmp_path)
    pushed.extra = {MANIFEST_NAME: 2**28}
    with pytest.raises(BundleError, match="more than"):
        pull(PLACE, tmp_path / "b")
    nothing_stays(tmp_path)


def test_a_bundle_that_is_too_large_is_refused_before_its_weights_are_asked_for(
    pushed: Repository, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="1,000 are allowed"):
        pull(PLACE, tmp_path / "b", max_bytes=1000)
    altered(pushed, FileRecord(path="huge", sha256="0" * 64, size=2**62))
    with pytest.raises(BundleError, match="are free here"):
        pull(PLACE, tmp_path / "b", max_bytes=2**63)
    assert set(pushed.asked) == {MANIFEST_NAME, SIGNATURE_NAME}


def test_an_unsigned_bundle_is_refused_under_a_policy_before_anything_else_is_fetched(
    pushed: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_key(tmp_path / "release.pem")
    policy = tmp_path / "policy.toml"
    policy.write_text("schema_version = 1\ntrusted_keys = ['release.pub']\n")
    monkeypatch.setenv("VGGDEPLOY_POLICY", str(policy))
    with pytest.raises(SignatureError, match="is not signed"):
        pull(PLACE, tmp_path / "b")
    assert pushed.asked == [MANIFEST_NAME, SIGNATURE_NAME]
    assert not (tmp_path / "b").exists()


def test_a_signature_is_kept_and_checked_and_another_key_is_refused(
    hub: dict[str, Repository], own_bundle: Path, tmp_path: Path
) -> None:
    for name in ("release", "other"):
        new_key(tmp_path / f"{name}.pem")
    sign_bundle(own_bundle, tmp_path / "release.pem")
    assert push(Bundle.open(own_bundle), PLACE).signed
    good = signer_rules(Trust([tmp_path / "release.pub"]))
    assert pull(PLACE, tmp_path / "b", trust=good).signer
    with pytest.raises(SignatureError, match="does not name"):
        pull(PLACE, tmp_path / "c", trust=signer_rules(Trust([tmp_path / "other.pub"])))
    repository = hub[PLACE.repository]
    record = FileRecord(path="more.txt", sha256=hashlib.sha256(b"more").hexdigest(), size=4)
    altered(repository, record)  # whole in itself, and not what was signed
    repository.files["more.txt"] = b"more"
    with pytest.raises(SignatureError, match="not what was signed"):
        pull(PLACE, tmp_path / "c", trust=good)
    assert not (tmp_path / "c").exists()


def test_a_link_that_stands_where_the_bundle_is_to_be_is_not_followed(pushed: Repository, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="symbolic link"):
        pull(PLACE, tmp_path / "b", overwrite=True)
    assert not any((tmp_path / "elsewhere").iterdir())


def test_what_a_repository_has_beside_the_bundle_is_not_fetched(pushed: Repository, tmp_path: Path) -> None:
    pushed.files["pwn.pkl"] = b"cos\nsystem\n"
    pushed.files[".gitattributes"] = b"* text"
    pull(PLACE, tmp_path / "b")
    assert pushed.commits == {COMMIT}  # one that was looked up, and no branch that moves
    assert not {"pwn.pkl", ".gitattributes"} & set(pushed.asked)
    assert not (tmp_path / "b/pwn.pkl").exists()


def test_a_repository_that_is_not_there_and_one_without_a_bundle(hub: dict[str, Repository], tmp_path: Path) -> None:
    with pytest.raises(VggdeployError, match="no such repository"):
        pull(Place("me/nothing"), tmp_path / "b")
    hub["me/empty"] = Repository()
    with pytest.raises(BundleError, match="holds no bundle"):
        pull(Place("me/empty"), tmp_path / "b")
    nothing_stays(tmp_path)


def test_a_link_in_the_signatures_place_is_not_published(
    hub: dict[str, Repository], own_bundle: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "id_ed25519"
    secret.write_bytes(b"a private key")
    (own_bundle / SIGNATURE_NAME).symlink_to(secret)
    with pytest.raises(IntegrityError, match="symbolic link"):
        push(Bundle.open(own_bundle), PLACE)
    assert hub == {}
    (own_bundle / SIGNATURE_NAME).unlink()
    (own_bundle / SIGNATURE_NAME).write_bytes(b"a private key")
    with pytest.raises(SignatureError, match="names no key"):
        push(Bundle.open(own_bundle), PLACE)
    assert hub == {}


@pytest.mark.parametrize("sha", [None, "../../../other/pwn/resolve/main", "main", 7])
def test_a_hub_that_names_no_commit_is_asked_for_no_file(pushed: Repository, tmp_path: Path, sha: object) -> None:
    pushed.about = {"sha": sha}
    with pytest.raises(VggdeployError, match="names no commit"):
        pull(PLACE, tmp_path / "b")
    assert pushed.asked == []
    pushed.about = {"siblings": 7}
    with pytest.raises(VggdeployError, match="names no commit"):
        pull(PLACE, tmp_path / "b")


def test_a_name_beyond_the_basic_plane_is_itself_in_a_cards_head(bundle: Bundle) -> None:
    name = "digits \N{GRINNING FACE} \\ud83d\\ude00"
    manifest = msgspec.structs.replace(bundle.manifest, name=name)
    head = yaml.safe_load(model_card(Bundle(bundle.root, manifest), PLACE).split("---\n")[1])
    assert head["model-index"][0]["name"] == name


def test_a_variant_that_failed_is_not_pushed(hub: dict[str, Repository], own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    failed = [
        msgspec.structs.replace(v, parity=v.parity.failed(("planted",))) if v.parity else v
        for v in bundle.manifest.variants
    ]
    manifest = bundle.manifest.with_variants(*failed)
    with pytest.raises(UsageError, match="failed parity"):
        push(Bundle(bundle.root, manifest), PLACE)
    assert hub == {}


@pytest.mark.parametrize(
    "text",
    ["me/digits", "hf://digits", "hf://me/../x", "hf://me/digits/more", "hf://me/digits@", "hf://-x/y", "hf://me/a b"],
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no place on the Hub"):
        Place.parse(text)


def test_a_hub_that_does_not_answer_is_one_sentence(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(VggdeployError, match="cannot be pulled"):
        pull(PLACE, tmp_path / "b")
    nothing_stays(tmp_path)


@pytest.mark.parametrize("which", [MANIFEST_NAME, "weights"])
def test_what_comes_packed_is_refused_as_nobody_asked_for_it(
    pushed: Repository, bundle_dir: Path, tmp_path: Path, which: str
) -> None:
    name = which if which == MANIFEST_NAME else Bundle.open(bundle_dir).manifest.files[0].path
    pushed.packed.add(name)
    with pytest.raises(VggdeployError, match=r"packed \(gzip\), which nobody asked for"):
        pull(PLACE, tmp_path / "b")
    nothing_stays(tmp_path)


@pytest.mark.parametrize("name", [CARD_NAME, BOM_NAME])
def test_a_bundle_with_a_file_where_the_card_goes_is_not_pushed(
    hub: dict[str, Repository], own_bundle: Path, tmp_path: Path, name: str
) -> None:
    """The card would take its place, and nobody could pull that bundle again."""
    (own_bundle / name).write_text("mine")
    manifest = parse_manifest((own_bundle / MANIFEST_NAME).read_bytes(), where="here")
    record = FileRecord(path=name, size=4, sha256=sha256_of(own_bundle / name))
    sealed = seal(msgspec.structs.replace(manifest, files=(*manifest.files, record)))
    (own_bundle / MANIFEST_NAME).write_bytes(sealed)
    with pytest.raises(UsageError, match=f"has a file {name} of its own") as caught:
        push(Bundle.open(own_bundle), PLACE)
    assert not hub
    assert "--target slim" in caught.value.hint
    slim = ["--quiet", "package", str(own_bundle), "--target", "slim", "--variant", "onnx-fp32", "-o"]
    assert run([*slim, str(tmp_path / "slim")]) == 0
    push(Bundle.open(tmp_path / "slim"), PLACE)
    pull(PLACE, tmp_path / "back")
