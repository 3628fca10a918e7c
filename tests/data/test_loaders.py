"""A split is what training, parity, bench and verify all look at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vggdeploy.data import sources
from vggdeploy.data.loaders import load_split
from vggdeploy.data.sources import default_preprocess, get_dataset, read_source
from vggdeploy.data.specs import DATASETS, user_cache
from vggdeploy.errors import DataError, UsageError
from vggdeploy.preprocess import prepare


def test_images_are_prepared_by_the_one_function() -> None:
    preprocess = default_preprocess("digits", 32)
    found = load_split("digits", "test", preprocess, limit=20)
    raw = read_source(get_dataset("digits"), "test", None)
    assert found.images.shape == (20, 32, 32, 1)
    assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int64)
    for image, label, index in zip(found.images, found.labels, found.indices, strict=True):
        assert (image == prepare(raw.images[index], preprocess)).all()
        assert label == raw.labels[index]


def test_digits_use_the_whole_range_of_a_byte() -> None:
    images = read_source(get_dataset("digits"), "train", None).images
    assert images.shape == (1797, 8, 8)
    assert sorted(np.unique(images)) == [(v * 255 + 8) // 16 for v in range(17)]
    assert (images.min(), images.max()) == (0, 255)


def test_mean_and_std_are_the_training_splits() -> None:
    spec = get_dataset("digits")
    pixels = load_split("digits", "train", default_preprocess("digits", 8)).images / 255
    assert pixels.mean() == pytest.approx(spec.mean[0], abs=5e-4)
    assert pixels.std() == pytest.approx(spec.std[0], abs=5e-4)


def test_a_limit_takes_the_first_of_a_fixed_order() -> None:
    preprocess = default_preprocess("digits", 32)
    whole, some = load_split("digits", "test", preprocess), load_split("digits", "test", preprocess, limit=50)
    assert (some.images == whole.images[:50]).all()
    assert len(np.unique(some.labels)) == 10
    assert len(load_split("digits", "test", preprocess, limit=10_000)) == 359


def test_loading_digits_needs_neither_torch_nor_pickle() -> None:
    script = (
        "import sys, numpy as np\n"
        "from vggdeploy.data.loaders import load_split\n"
        "from vggdeploy.data.sources import default_preprocess\n"
        "sys.modules['pickle'] = None\n"
        "print(len(load_split('digits', 'train', default_preprocess('digits', 32))))\n"
        "assert not {'torch', 'torchvision', 'safetensors'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1295"


@pytest.mark.parametrize(
    ("name", "meant"), [("digit", "digits"), ("fashion_mnst", "fashion-mnist"), ("minst", "mnist")]
)
def test_a_misspelt_data_set_gets_the_closest_name(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{meant}'"):
        load_split(name, "test", default_preprocess("digits", 32))


@pytest.mark.parametrize("name", ["Digits", " digits ", "DIGITS"])
def test_case_does_not_matter(name: str) -> None:
    assert get_dataset(name).name == "digits"


@pytest.mark.parametrize("name", ["FashionMNIST", "fashion_mnist", "Fashion MNIST", "fashion-mnist"])
def test_the_usual_spellings_of_fashion_mnist(name: str) -> None:
    assert get_dataset(name).name == "fashion-mnist"


def test_a_misspelt_split_gets_the_closest_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'validation'"):
        load_split("digits", "valid", default_preprocess("digits", 32))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        load_split("digits", "test", default_preprocess("digits", 32), limit=limit)


@pytest.mark.parametrize("spec", DATASETS.values(), ids=lambda spec: spec.name)
def test_every_data_set_fits_its_own_preprocessing(spec: sources.DatasetSpec) -> None:
    preprocess = default_preprocess(spec.name, 64)
    assert (preprocess.channels, preprocess.crop) == (spec.channels, 64)
    assert len(set(spec.classes)) == len(spec.classes)


@pytest.mark.parametrize("damage", [lambda d: d[:1000], lambda d: b"", lambda d: d[:300] + b"\0" * 50 + d[350:]])
def test_damaged_digits_are_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: object) -> None:
    data = (Path(sources.__file__).parent / "digits.npz").read_bytes()
    (tmp_path / "digits.npz").write_bytes(damage(data))  # type: ignore[operator]
    monkeypatch.setattr(sources, "files", lambda _: tmp_path)
    with pytest.raises(DataError, match="reinstall vggdeploy"):
        load_split("digits", "test", default_preprocess("digits", 32))


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert user_cache() == Path("/somewhere/vggdeploy/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG specification says to ignore such a value
    assert user_cache() == Path.home() / ".cache/vggdeploy/data"
