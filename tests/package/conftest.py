"""The packaged site, and two browsers: one without a GPU, one with SwiftShader in its place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from report.chromium import CHROMIUM, FLAGS

from vggdeploy.bundle import Bundle
from vggdeploy.package.base import Order
from vggdeploy.package.web import package_web

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
# SwiftShader computes what a GPU would.
_GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")


@pytest.fixture(scope="module")
def site(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("web") / "site"
    package_web(Order(bundle=Bundle.open(bundle_dir), output=root, prepare=True))
    return root


@pytest.fixture
def own_site(site: Path, tmp_path: Path) -> Path:
    """A copy to damage; what is large and stays whole is linked."""
    return Path(shutil.copytree(site, tmp_path / "site", copy_function=_link))


def _link(source: str, target: str) -> None:
    if "ort-wasm" in source:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def driver() -> Iterator[Playwright]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright


def _launch(driver: Playwright, *more: str) -> Iterator[Browser]:
    opened = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *_CAMERA, *more])
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def browser(driver: Playwright) -> Iterator[Browser]:
    yield from _launch(driver)


@pytest.fixture(scope="module")
def with_gpu(driver: Playwright) -> Iterator[Browser]:
    """Started by the first test that asks for it."""
    yield from _launch(driver, *_GPU)
