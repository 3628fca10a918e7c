"""A checkpoint comes back bit for bit, or is refused in one line."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import safetensors.torch
import torch

from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, Checkpoint, read_checkpoint
from vggdeploy.errors import CheckpointError, UsageError
from vggdeploy.model.vgg import new_vgg
from vggdeploy.model.weights import load_model, load_state, save_checkpoint
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.files import sha256_of

SPEC = ModelSpec.named("vgg11_bn", width=0.125, in_channels=1, classes=4, image_size=32, hidden=8)
CHECKPOINT = Checkpoint(
    spec=SPEC,
    preprocess=PreprocessSpec(mode="L", resize=32, crop=32, mean=(0.5,), std=(0.5,)),
    labels=("a", "b", "c", "d"),
    dataset="digits",
    training={"epochs": 1, "history": [{"loss": 0.5}]},
    tools={"torch": str(torch.__version__)},
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "ckpt", new_vgg(SPEC, seed=1), CHECKPOINT)
    return tmp_path / "ckpt"


def rewrite(root: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights as somebody who also mends the hash."""
    state = safetensors.torch.load_file(root / WEIGHTS_NAME)
    state = {k: v.clone() for k, v in state.items()}
    change(state)
    safetensors.torch.save_file(state, root / WEIGHTS_NAME)
    seal(root)


def seal(root: Path) -> None:
    document = json.loads((root / CHECKPOINT_NAME).read_bytes())
    document["weights_sha256"] = sha256_of(root / WEIGHTS_NAME)
    (root / CHECKPOINT_NAME).write_text(json.dumps(document))


def refused(root: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_model(root)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_what_is_saved_comes_back(saved: Path) -> None:
    model = load_model(saved)
    expected = new_vgg(SPEC, seed=1).state_dict()
    assert model.spec == SPEC
    assert not model.training
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    record = read_checkpoint(saved)
    assert record == msgspec.structs.replace(CHECKPOINT, weights_sha256=sha256_of(saved / WEIGHTS_NAME))


def test_only_two_files_are_written(saved: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == [CHECKPOINT_NAME, WEIGHTS_NAME]
    assert sorted(p.name for p in saved.parent.iterdir()) == ["ckpt"]


def test_channels_last_weights_are_saved_in_their_plain_order(saved: Path, tmp_path: Path) -> None:
    model = new_vgg(SPEC, seed=1).to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "other", model, CHECKPOINT)
    assert (tmp_path / "other" / WEIGHTS_NAME).read_bytes() == (saved / WEIGHTS_NAME).read_bytes()


def test_a_checkpoint_is_replaced_only_when_asked(saved: Path) -> None:
    with pytest.raises(UsageError, match="--force"):
        save_checkpoint(saved, new_vgg(SPEC, seed=2), CHECKPOINT)
    assert torch.equal(load_model(saved).features[0].weight, new_vgg(SPEC, seed=1).features[0].weight)
    save_checkpoint(saved, new_vgg(SPEC, seed=2), CHECKPOINT, overwrite=True)
    assert torch.equal(load_model(saved).features[0].weight, new_vgg(SPEC, seed=2).features[0].weight)


def test_one_altered_byte_is_noticed(saved: Path) -> None:
    data = bytearray((saved / WEIGHTS_NAME).read_bytes())
    data[-5] ^= 1
    (saved / WEIGHTS_NAME).write_bytes(data)
    assert "was altered" in refused(saved).cause


@pytest.mark.parametrize("keep", [0, 7, 100, 20_000])
def test_truncated_weights_are_refused_even_with_a_hash_that_fits(saved: Path, keep: int) -> None:
    (saved / WEIGHTS_NAME).write_bytes((saved / WEIGHTS_NAME).read_bytes()[:keep])
    seal(saved)
    assert "cannot be read" in refused(saved).cause


def test_bytes_that_are_no_safetensors_are_refused(saved: Path) -> None:
    (saved / WEIGHTS_NAME).write_bytes(b"\x80\x04\x95 this would be a pickle" * 100)
    seal(saved)
    assert "cannot be read" in refused(saved).cause


def test_a_newer_schema_names_a_newer_vggdeploy(saved: Path) -> None:
    document = json.loads((saved / CHECKPOINT_NAME).read_bytes()) | {"schema_version": 99, "novelty": True}
    (saved / CHECKPOINT_NAME).write_text(json.dumps(document))
    error = refused(saved)
    assert "schema version 99" in error.cause
    assert "install a newer" in error.hint


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda s: s.pop("classifier.6.bias"), "missing classifier.6.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda s: s.update({"classifier.6.bias": torch.zeros(5)}), r"classifier.6.bias is [5], not [4]"),
        (lambda s: s.update({"classifier.6.bias": torch.zeros(4, dtype=torch.int8)}), "classifier.6.bias is int8"),
        (lambda s: s.update({f"extra.{i}": torch.zeros(1) for i in range(9)}), "and 6 more"),
    ],
    ids=["missing", "unexpected", "shape", "integers", "many"],
)
def test_weights_of_another_network_are_named(
    saved: Path, change: Callable[[dict[str, torch.Tensor]], object], cause: str
) -> None:
    rewrite(saved, change)
    assert cause in refused(saved).cause


def test_half_weights_become_float(saved: Path) -> None:
    rewrite(saved, lambda s: s.update({k: v.half() for k, v in s.items() if v.is_floating_point()}))
    assert {p.dtype for p in load_model(saved).parameters()} == {torch.float32}


def test_batch_norms_without_a_counter_load_as_torchvisions_of_2017() -> None:
    state = {k: v for k, v in new_vgg(SPEC, seed=1).state_dict().items() if not k.endswith("num_batches_tracked")}
    model = new_vgg(SPEC, seed=2)
    load_state(model, state, where="old")
    assert torch.equal(model.features[0].weight, state["features.0.weight"])


def test_a_full_disk_is_the_systems_error_and_leaves_nothing(tmp_path: Path) -> None:
    # A limit on file size stands for a full disk: both make write() fail half-way.
    script = (
        "import resource, sys; from pathlib import Path; from test_weights import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: save_checkpoint(Path(sys.argv[1]), new_vgg(SPEC), CHECKPOINT)\n"
        "except OSError as error: print(error.errno, error.filename)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "ckpt"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.split() == [str(errno.EFBIG), str(tmp_path / "ckpt" / WEIGHTS_NAME)]
    assert list(tmp_path.iterdir()) == []
