"""A network starts from weights elsewhere: all that fits is copied, and all that does not is named."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from foreign_nets import CLASSES, OTHER, TimmVGG, filled, textbook_net, torchvision_net
from torch import Tensor

from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, Checkpoint
from vggdeploy.errors import CheckpointError, UsageError
from vggdeploy.model.foreign.facts import InitReport
from vggdeploy.model.foreign.initial import load_initial_weights
from vggdeploy.model.vgg import VGG, new_vgg
from vggdeploy.model.weights import save_checkpoint
from vggdeploy.records import from_json, to_json
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.files import sha256_of

HEAD = ("classifier.6.weight", "classifier.6.bias")
CLASSIFIER = tuple(f"classifier.{i}.{leaf}" for i in (0, 3, 6) for leaf in ("weight", "bias"))
GREY = PreprocessSpec(mode="L", resize=32, crop=32, mean=(0.3,), std=(0.4,))


def spec(arch: str = "vgg11", **about: object) -> ModelSpec:
    settings = {"width": 0.125, "classes": CLASSES, "hidden": (24, 16), **about}
    return ModelSpec.named(arch, **settings)  # type: ignore[arg-type]


def fresh(about: ModelSpec) -> tuple[VGG, dict[str, Tensor]]:
    """A network, and a copy of what it starts with."""
    model = new_vgg(about, seed=3)
    return model, {k: v.clone() for k, v in model.state_dict().items()}


def changed(model: VGG, before: dict[str, Tensor]) -> set[str]:
    """The tensors that are not what they were."""
    return {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


def trainable(names: Iterable[str]) -> set[str]:
    """Without the counters of batches, which are 0 on both sides."""
    return {name for name in names if not name.endswith(".num_batches_tracked")}


def refused(source: Path | str, model: VGG, **options: object) -> CheckpointError:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_initial_weights(str(source), model, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert str(source) in caught.value.cause
    assert caught.value.hint
    assert not changed(model, before), "something was copied all the same"
    return caught.value


@pytest.fixture
def tv(tmp_path: Path) -> Path:
    torch.save(torchvision_net(batch_norm=True).state_dict(), tmp_path / "tv.pth")
    return tmp_path / "tv.pth"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    about = spec("vgg11_bn", in_channels=1, image_size=32)
    record = Checkpoint(spec=about, preprocess=GREY, labels=tuple("abcde"), dataset="digits")
    save_checkpoint(tmp_path / "ckpt", new_vgg(about, seed=1), record)
    return tmp_path / "ckpt"


def test_torchvisions_file(tv: Path) -> None:
    model, _ = fresh(spec("vgg11_bn"))
    report = load_initial_weights(str(tv), model)
    expected = torchvision_net(batch_norm=True).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    assert report == InitReport(
        source=str(tv), layout="torchvision", sha256=sha256_of(tv), loaded=len(expected),
        parameters=sum(v.numel() for k, v in expected.items() if not k.endswith("tracked")),
    )  # fmt: skip


def test_every_layout_and_container(tmp_path: Path) -> None:
    safetensors.torch.save_file(filled(TimmVGG()).state_dict(), tmp_path / "timm.safetensors")
    torch.save({"model": textbook_net(size=32).state_dict()}, tmp_path / "d2l.pt")
    model, before = fresh(spec())
    assert load_initial_weights(str(tmp_path / "timm.safetensors"), model).layout == "timm"
    assert changed(model, before) == set(before)
    model, before = fresh(spec(in_channels=1, image_size=32))
    assert load_initial_weights(str(tmp_path / "d2l.pt"), model).layout == "sequential"
    assert changed(model, before) == set(before)


def test_our_checkpoint_brings_its_preprocessing(ours: Path) -> None:
    model, _ = fresh(spec("vgg11_bn", in_channels=1, image_size=32))
    report = load_initial_weights(str(ours), model)
    expected = new_vgg(model.spec, seed=1).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    assert (report.layout, report.preprocess) == ("checkpoint", GREY)


def test_the_memory_format_and_the_parameters_themselves_stay(tv: Path) -> None:
    model = new_vgg(spec("vgg11_bn")).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight = model.features[4].weight
    load_initial_weights(str(tv), model)
    assert model.features[4].weight is weight  # an optimiser may hold it
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.requires_grad


def test_the_file_is_not_changed_by_training(tv: Path) -> None:
    before = sha256_of(tv)
    model, _ = fresh(spec("vgg11_bn"))
    load_initial_weights(str(tv), model)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.zero_()
    assert sha256_of(tv) == before


def test_another_head_is_an_error_unless_it_is_allowed(tv: Path) -> None:
    model, before = fresh(spec("vgg11_bn", classes=9))
    error = refused(tv, model)
    assert f"it has {CLASSES} classes, the model 9" in error.cause
    assert "allow a fresh last layer" in error.hint
    report = load_initial_weights(str(tv), model, allow_head_mismatch=True)
    assert report.fresh == HEAD
    assert report.unused == HEAD
    assert not changed(model, before) & set(HEAD)
    text = "\n".join(report.lines())
    assert "fresh, not from there: classifier.6.weight, classifier.6.bias" in text
    assert "there, and not used: classifier.6.weight, classifier.6.bias" in text


def test_allowing_another_head_keeps_a_head_that_fits(tv: Path) -> None:
    model, before = fresh(spec("vgg11_bn"))
    assert load_initial_weights(str(tv), model, allow_head_mismatch=True).fresh == ()
    assert set(HEAD) <= changed(model, before)


def test_a_source_without_a_head_may_start_one(tmp_path: Path) -> None:
    state = filled(TimmVGG()).state_dict()
    torch.save({k: v for k, v in state.items() if not k.startswith("head.")}, tmp_path / "w.pth")
    model, before = fresh(spec())
    assert "2 linear layers" in refused(tmp_path / "w.pth", model).cause
    assert load_initial_weights(str(tmp_path / "w.pth"), model, allow_head_mismatch=True).fresh == HEAD
    assert not changed(model, before) & set(HEAD)


def test_a_head_is_kept_fresh_on_request_even_if_it_would_fit(tv: Path) -> None:
    """Ten digits are not ten pieces of clothing."""
    model, before = fresh(spec("vgg11_bn"))
    report = load_initial_weights(str(tv), model, keep_fresh="head")
    assert (report.fresh, report.unused) == (HEAD, HEAD)
    assert changed(model, before) == trainable(before) - set(HEAD)


def test_features_alone_go_into_another_image_size_hidden_width_and_head(ours: Path) -> None:
    model, before = fresh(spec("vgg11_bn", in_channels=1, image_size=64, hidden=48, classes=3))
    assert "image size" not in refused(ours, model, allow_head_mismatch=True).cause
    report = load_initial_weights(str(ours), model, keep_fresh="classifier")
    assert report.fresh == CLASSIFIER
    assert set(report.unused) == set(CLASSIFIER)
    assert {key.partition(".")[0] for key in changed(model, before)} == {"features"}


def test_features_alone_are_enough_of_a_source_for_features(tmp_path: Path) -> None:
    state = torchvision_net().state_dict()
    torch.save({k: v for k, v in state.items() if k.startswith("features.")}, tmp_path / "w.pth")
    model, before = fresh(spec())
    assert "0 linear layers" in refused(tmp_path / "w.pth", model, allow_head_mismatch=True).cause
    load_initial_weights(str(tmp_path / "w.pth"), model, keep_fresh="classifier")
    assert changed(model, before) == {k for k in before if k.startswith("features.")}


def test_a_broken_classifier_does_not_matter_where_it_is_not_used(tmp_path: Path) -> None:
    """As in torchvision's IMAGENET1K_FEATURES, which has NaN there."""
    state = torchvision_net().state_dict()
    torch.save({k: v * torch.nan if "classifier" in k else v for k, v in state.items()}, tmp_path / "w.pth")
    model, _ = fresh(spec())
    assert "classifier.0.weight holds NaN" in refused(tmp_path / "w.pth", model).cause
    assert load_initial_weights(str(tmp_path / "w.pth"), model, keep_fresh="classifier").fresh == CLASSIFIER


def test_torchvisions_weights_at_a_smaller_size_keep_fc6(tv: Path) -> None:
    model, _ = fresh(spec("vgg11_bn", image_size=32))
    report = load_initial_weights(str(tv), model)
    assert any("average pool was folded into it" in note for note in report.notes)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(model.eval()(x), torchvision_net(batch_norm=True)(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("about", "cause"),
    [
        ({"arch": "vgg16_bn"}, "are 8 of 8 … 64 channels (vgg11 × 0.125), the model's 13 of 8 … 64 channels (vgg16 × 0.125)"),
        ({"arch": "vgg11_bn", "width": 0.25}, "(vgg11 × 0.125), the model's 8 of 16 … 128 channels (vgg11 × 0.25)"),
        ({"arch": "vgg11"}, "it has batch norm, the model has none"),
        ({"arch": "vgg11_bn", "in_channels": 1}, "it takes RGB images (3 channels), the model grey images (1 channel)"),
        ({"arch": "vgg11_bn", "hidden": 24}, "its hidden linear layers have (24, 16) outputs, the model's (24, 24)"),
        ({"arch": "vgg11", "in_channels": 1}, "has none; it takes RGB"),
    ],
    ids=["arch", "width", "norm", "grey", "hidden", "two"],
)  # fmt: skip
def test_another_network_is_refused_with_what_is_otherwise(tv: Path, about: dict[str, object], cause: str) -> None:
    model, _ = fresh(spec(**about))  # type: ignore[arg-type]
    assert cause in refused(tv, model, allow_head_mismatch=True).cause


def test_grey_weights_do_not_go_into_a_network_for_rgb(ours: Path) -> None:
    model, _ = fresh(spec("vgg11_bn", image_size=32))
    error = refused(ours, model, keep_fresh="classifier")
    assert "it takes grey images (1 channel), the model RGB images (3 channels)" in error.cause
    assert "grey images" in error.hint


def test_another_image_size_of_a_network_without_adaptive_pool_names_the_right_one(tmp_path: Path) -> None:
    torch.save(textbook_net(size=32).state_dict(), tmp_path / "w.pth")
    model, _ = fresh(spec(in_channels=1, image_size=64))
    error = refused(tmp_path / "w.pth", model)
    assert "its fc6 takes 64 inputs (images of 32 px), the model's 256 (64 px)" in error.cause
    assert "--image-size 32" in error.hint


def test_blocks_with_other_borders_are_another_network(tmp_path: Path) -> None:
    torch.save(torchvision_net(OTHER).state_dict(), tmp_path / "w.pth")
    about = ModelSpec(arch="custom", blocks=((8,), (8, 24), (24,)), classes=CLASSES, image_size=56, hidden=(24, 16))
    assert "its pools stand elsewhere" in refused(tmp_path / "w.pth", new_vgg(about)).cause


def test_a_checkpoint_from_a_newer_schema_names_a_newer_vggdeploy(ours: Path) -> None:
    document = json.loads((ours / CHECKPOINT_NAME).read_bytes()) | {"schema_version": 99}
    (ours / CHECKPOINT_NAME).write_text(json.dumps(document))
    model, _ = fresh(spec("vgg11_bn", in_channels=1, image_size=32))
    error = refused(ours, model)
    assert "schema version 99" in error.cause
    assert "install a newer" in error.hint


def test_an_altered_checkpoint_is_refused(ours: Path) -> None:
    data = bytearray((ours / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (ours / "model.safetensors").write_bytes(data)
    model, _ = fresh(spec("vgg11_bn", in_channels=1, image_size=32))
    assert "was altered" in refused(ours, model).cause


def test_a_source_that_is_not_there_is_told_what_may_be(tmp_path: Path) -> None:
    model, _ = fresh(spec())
    error = refused(tmp_path / "none.pth", model)
    assert "does not exist" in error.cause
    assert "torchvision:vgg16" in error.hint
    (tmp_path / "empty").mkdir()
    assert "is not a checkpoint" in refused(tmp_path / "empty", model).cause
    with pytest.raises(UsageError, match="torchvision:vgg16"):
        load_initial_weights("vgg16", model)
    with pytest.raises(UsageError, match="did you mean 'classifier'"):
        load_initial_weights("vgg16", model, keep_fresh="clasifier")  # type: ignore[arg-type]


def test_a_report_is_json_both_ways_and_safe_to_print(tmp_path: Path) -> None:
    state = {f"\x1b[31m\n.{k}": v for k, v in torchvision_net().state_dict().items()}
    torch.save({"model": state, **{f"extra{i}": i for i in range(20)}}, tmp_path / "w.pth")
    model, _ = fresh(spec())
    report = load_initial_weights(str(tmp_path / "w.pth"), model)
    assert from_json(to_json(report), InitReport, what="report") == report
    assert all(line.isprintable() for line in report.lines())
    assert "and 8 more" in "\n".join(report.lines())
