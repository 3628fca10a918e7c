"""torchvision's own weights: by name, downloaded once and checked by hash, or missed in words."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models import VGG11_BN_Weights, VGG16_Weights
from torchvision.models._api import WeightsEnum
from torchvision.transforms import InterpolationMode

from vggdeploy.errors import CheckpointError, DataError, UsageError
from vggdeploy.model.foreign.files import StateFile, read_state_file
from vggdeploy.model.foreign.initial import load_initial_weights, locate
from vggdeploy.model.foreign.published import Published, check_hash, fetch, published
from vggdeploy.model.vgg import VGG
from vggdeploy.parity.pixels import IMAGES
from vggdeploy.preprocess import prepare
from vggdeploy.spec import ModelSpec, PreprocessSpec, architecture_names

STATE = {"features.0.weight": torch.ones(2, 3, 3, 3)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's cache, empty."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that a web server shows, which stands for download.pytorch.org."""
    root = tmp_path / "www"
    root.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        offer(monkeypatch, f"http://127.0.0.1:{http.server_address[1]}/vgg16-00000000.pth")
        yield root
        http.shutdown()


def offer(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let torchvision think that its weights lie there."""
    monkeypatch.setattr(WeightsEnum, "url", property(lambda self: url))


def put(root: Path, monkeypatch: pytest.MonkeyPatch, *, wrong: bool = False) -> str:
    """A small state dict on the server, under a name that ends in its hash (or another's)."""
    torch.save(STATE, root / "w")
    digest = "0" * 8 if wrong else hashlib.sha256((root / "w").read_bytes()).hexdigest()[:8]
    name = f"vgg16-{digest}.pth"
    (root / "w").rename(root / name)
    base = VGG16_Weights.IMAGENET1K_V1.url.rpartition("/")[0]
    offer(monkeypatch, f"{base}/{name}")
    return name


def vgg16() -> Published:
    return published("torchvision:vgg16", arch=None)


@pytest.mark.parametrize("arch", architecture_names())
def test_every_architecture_has_its_weights_with_labels_and_preprocessing(arch: str) -> None:
    wanted = published(f"torchvision:{arch}", arch=None)
    assert wanted.spec == ModelSpec.named(arch)
    assert len(wanted.labels) == 1000
    assert wanted.labels[:2] == ("tench", "goldfish")
    assert wanted.preprocess(224) == PreprocessSpec()  # resize 256, centre crop 224, ImageNet's mean and std
    assert wanted.file_name == f"{arch}-{wanted.sha256_prefix}.pth"
    assert len(wanted.sha256_prefix) == 8


@pytest.mark.parametrize(
    ("source", "arch", "member"),
    [
        ("torchvision:VGG11-bn", None, VGG11_BN_Weights.IMAGENET1K_V1),
        ("TorchVision:vgg16", None, VGG16_Weights.IMAGENET1K_V1),
        ("torchvision:IMAGENET1K_V1", "vgg16", VGG16_Weights.IMAGENET1K_V1),
        ("torchvision:imagenet1k_features", "vgg16", VGG16_Weights.IMAGENET1K_FEATURES),
        ("torchvision:DEFAULT", "vgg11_bn", VGG11_BN_Weights.DEFAULT),
        ("torchvision:VGG16_Weights.IMAGENET1K_FEATURES", None, VGG16_Weights.IMAGENET1K_FEATURES),
        ("torchvision:VGG11_BN_Weights.IMAGENET1K_V1", "vgg16", VGG11_BN_Weights.IMAGENET1K_V1),
    ],
)
def test_a_set_of_weights_has_several_names(source: str, arch: str | None, member: WeightsEnum) -> None:
    assert published(source, arch=arch).weights is member


@pytest.mark.parametrize(
    ("source", "arch", "answer"),
    [
        ("torchvision:vgg61", None, "did you mean 'vgg1"),
        ("torchvision:resnet50", None, "is unknown"),
        ("torchvision:IMAGENET1K_V1", None, "give a name that does, such as torchvision:vgg16"),
        ("torchvision:IMAGENET1K_V1", "custom", "give a name that does, such as torchvision:vgg16"),
        ("torchvision:", None, "give a name that does, such as torchvision:vgg16"),
        ("torchvision:IMAGENET1K_V3", "vgg16", "known: DEFAULT, IMAGENET1K_FEATURES, IMAGENET1K_V1"),
        ("torchvision:IMAGENET1K_FEATURES", "vgg11", "known: DEFAULT, IMAGENET1K_V1"),
        ("torchvision:VGG61_Weights.IMAGENET1K_V1", None, "is unknown"),
    ],
)
def test_an_unknown_name_is_answered(source: str, arch: str | None, answer: str) -> None:
    with pytest.raises(UsageError) as caught:
        published(source, arch=arch)
    assert answer in str(caught.value)


def test_the_preprocessing_computes_what_torchvisions_transform_computes() -> None:
    transform = VGG16_Weights.IMAGENET1K_V1.transforms()
    assert transform.interpolation is InterpolationMode.BILINEAR
    spec = vgg16().preprocess(224)
    images = IMAGES
    for path in (images / "rgb-portrait.png", images / "rgb-square.png", images / "rgb.bmp"):
        with Image.open(path) as image:
            expected = transform(image.convert("RGB"))
        pixels = torch.tensor(prepare(path, spec)).permute(2, 0, 1)
        ours = pixels * torch.tensor(spec.scale).reshape(3, 1, 1) + torch.tensor(spec.shift).reshape(3, 1, 1)
        assert torch.allclose(ours, expected, atol=1e-5), path.name


def test_another_size_is_resized_in_the_same_proportion() -> None:
    assert (vgg16().preprocess(64).resize, vgg16().preprocess(64).crop) == (73, 64)


def test_the_features_have_their_own_normalisation_and_no_labels() -> None:
    wanted = published("torchvision:IMAGENET1K_FEATURES", arch="vgg16")
    assert wanted.labels == ()
    assert wanted.preprocess(224).std == (1 / 255,) * 3


def test_a_download_is_checked_and_kept(
    server: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = put(server, monkeypatch)
    file = fetch(vgg16())
    assert torch.equal(file.tensors["features.0.weight"], STATE["features.0.weight"])
    assert file.where == "torchvision:vgg16"
    shown = capsys.readouterr()
    assert "Downloading" in shown.err
    assert shown.out == ""  # it belongs to --json
    (server / name).unlink()
    assert (own_cache / name).is_file()
    fetch(vgg16())  # from the cache


def test_a_download_with_another_hash_is_refused_and_not_kept(
    server: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server, monkeypatch, wrong=True)
    with pytest.raises(DataError, match="invalid hash value"):
        fetch(vgg16())
    assert list(own_cache.iterdir()) == []


def test_a_cached_file_that_was_altered_is_refused(
    server: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision itself would load it: it checks downloads only."""
    name = put(server, monkeypatch)
    own_cache.mkdir(parents=True)
    torch.save({"features.0.weight": torch.zeros(2, 3, 3, 3)}, own_cache / name)
    with pytest.raises(DataError) as caught:
        fetch(vgg16())
    assert "is not what torchvision published" in caught.value.cause
    assert "remove it" in caught.value.hint


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/vgg16-397923af.pth", "http://no-such-host.invalid/vgg16-397923af.pth"]
)
def test_offline_both_remedies_are_named_with_the_file_and_the_directory(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    offer(monkeypatch, url)
    with pytest.raises(DataError) as caught:
        fetch(vgg16())
    assert "\n" not in str(caught.value)
    assert f"torchvision:vgg16 cannot be downloaded from {url}" in caught.value.cause
    assert f"download vgg16-397923af.pth elsewhere, then put it into {own_cache}" in caught.value.hint
    assert "vggdeploy export torchvision:vgg16 --weights FILE" in caught.value.hint


def test_a_network_that_torchvision_does_not_have_is_refused_before_any_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer(monkeypatch, "http://127.0.0.1:9/never-asked-00000000.pth")
    for about, cause in (
        (ModelSpec.named("vgg16", width=0.5), "(vgg16 × 0.5)"),
        (ModelSpec.named("vgg16", in_channels=1), "takes RGB images (3 channels), the model grey"),
        (ModelSpec.named("vgg16_bn"), "it has no batch norm, the model has one"),
        (ModelSpec.named("vgg11"), "13 of 64 … 512 channels (vgg16), the model's 8 of 64 … 512 channels (vgg11)"),
    ):
        with pytest.raises(CheckpointError) as caught, torch.device("meta"):
            load_initial_weights("torchvision:vgg16", VGG(about))
        assert cause in caught.value.cause


def test_a_source_can_be_checked_before_anything_is_read(tmp_path: Path) -> None:
    assert isinstance(locate("torchvision:IMAGENET1K_V1", ModelSpec.named("vgg13")), Published)
    with pytest.raises(CheckpointError, match="does not exist"):
        locate(str(tmp_path / "none"), ModelSpec.named("vgg13"))


def test_a_file_given_for_published_weights_is_compared_with_them(tmp_path: Path) -> None:
    wanted = vgg16()
    assert check_hash(StateFile("any.pth", {}, sha256=f"{wanted.sha256_prefix}{'0' * 56}"), wanted) == ""
    torch.save(STATE, tmp_path / "mine.pth")
    assert "not the file that torchvision published" in check_hash(read_state_file(tmp_path / "mine.pth"), wanted)
    (tmp_path / "mine.pth").rename(tmp_path / wanted.file_name)
    with pytest.raises(CheckpointError, match="is damaged"):  # it bears the name, so it was meant to be that
        check_hash(read_state_file(tmp_path / wanted.file_name), wanted)


@pytest.mark.network
@pytest.mark.slow
def test_the_real_weights_arrive_and_convert(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = VGG(ModelSpec.named("vgg11"))
    model.to_empty(device="cpu")
    assert load_initial_weights("torchvision:IMAGENET1K_V1", model).parameters == 132_863_336
