"""Targets that are bytes: arrays, pictures, keys, weights, and the files of variants."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from typing import ClassVar

from fuzz import mutations
from fuzz.seeds import ENGINE, linked
from fuzz.target import Target
from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME
from vggdeploy.bundle.trust import Trust, signer_rules
from vggdeploy.errors import ParityError
from vggdeploy.system.sealed import HashedFile


class KeyTarget(Target):
    """A public key that is to be trusted."""

    name, suffix = "key", "pem"

    def prepare(self) -> None:
        linked(self.home / "signed", self.work / "bundle")

    def good(self) -> bytes:
        return (self.home / "release.pub").read_bytes()

    def attempt(self, data: bytes) -> str:
        key = self.write("key.pub", data)
        Bundle.open(self.work / "bundle", only=(), trust=signer_rules(Trust([key])))
        return "accepted"


class ArrayTarget(Target):
    """A golden array."""

    name, suffix = "array", "npy"

    def prepare(self) -> None:
        self._manifest = Bundle.open(self.home / "bundle").manifest

    def good(self) -> bytes:
        return (self.home / "bundle" / self._manifest.golden.outputs["logits"]).read_bytes()

    def attempt(self, data: bytes) -> str:
        from vggdeploy.bundle.arrays import read_array

        read_array(HashedFile.of(self.write("array.npy", data)), self._manifest.outputs[0])
        return "accepted"


class ImageTarget(Target):
    """An encoded picture, in any of the formats that are decoded."""

    name, suffix = "image", "bin"

    def prepare(self) -> None:
        from vggdeploy.parity.pixels import IMAGES

        files = [
            p for p in sorted(IMAGES.iterdir()) if p.suffix in (".png", ".jpg", ".gif", ".webp", ".tif", ".bmp", ".ppm")
        ]
        self._images = [path.read_bytes() for path in files]

    def good(self) -> bytes:
        return self._images[0]

    def changed(self, chance: random.Random) -> bytes:
        return mutations.changed_bytes(chance.choice(self._images), chance)

    def attempt(self, data: bytes) -> str:
        from vggdeploy.preprocess import prepare
        from vggdeploy.spec import PreprocessSpec

        prepare(self.write("picture", data), PreprocessSpec(mode="RGB", resize=8, crop=8), max_pixels=10**6)
        return "accepted"


class WeightsTarget(Target):
    """A ``.pth``, as a zip archive or older."""

    name, suffix = "weights", "pth"

    def prepare(self) -> None:
        self._files = [(self.home / name).read_bytes() for name in ("weights.pth", "legacy.pth")]

    def good(self) -> bytes:
        return self._files[0]

    def changed(self, chance: random.Random) -> bytes:
        data = chance.choice(self._files)
        at = data.find(b"\x80\x02")  # the pickle: nearly all of the structure
        if chance.random() < 0.6:
            end = at + 3000
            return data[:at] + mutations.changed_bytes(data[at:end], chance) + data[end:]
        return mutations.changed_bytes(data, chance)

    def attempt(self, data: bytes) -> str:
        from vggdeploy.model.foreign.files import read_state_file
        from vggdeploy.model.foreign.layouts import recognise

        recognise(read_state_file(self.write("weights.pth", data)))
        return "accepted"


class VariantTarget(Target):
    """A variant's file in a bundle whose hashes fit it: opened, loaded, and asked for the golden pair."""

    variant: ClassVar[str]

    def prepare(self) -> None:
        bundle = Bundle.open(self.home / "bundle")
        self._path = bundle.manifest.variant(self.variant).path
        self._size = len((self.home / "bundle" / self._path).read_bytes())
        linked(self.home / "bundle", self.work / "bundle")

    def good(self) -> bytes:
        return (self.home / "bundle" / self._path).read_bytes()

    def attempt(self, data: bytes) -> str:
        import vggdeploy

        with update_bundle(Bundle.open(self.work / "bundle", only=())) as draft:
            draft.write(self._path, data)
        try:
            with vggdeploy.load(self.work / "bundle", variant=self.variant, verify="always", threads=1):
                return "accepted"
        except ParityError:
            return "refuted"


class OnnxTarget(VariantTarget):
    name, suffix, variant = "onnx", "onnx", "onnx-fp32"


class EngineFileTarget(VariantTarget):
    """An engine's bytes, mostly its header, in a bundle whose hashes fit them. No library is asked, as no GPU is here."""

    name, suffix, variant = "engine-file", "engine", ENGINE


class TorchScriptTarget(VariantTarget):
    name, suffix, variant = "torchscript", "pt", "torchscript-fp32"


class SafetensorsTarget(Target):
    """The weights of a checkpoint whose hash fits them."""

    name, suffix = "safetensors", "safetensors"

    def prepare(self) -> None:
        linked(self.home / "checkpoint", self.work / "checkpoint")
        self._about = json.loads((self.home / "checkpoint" / CHECKPOINT_NAME).read_bytes())

    def good(self) -> bytes:
        return (self.home / "checkpoint" / WEIGHTS_NAME).read_bytes()

    def changed(self, chance: random.Random) -> bytes:
        good = self.good()
        size = int.from_bytes(good[:8], "little")
        if chance.random() < 0.6:
            head = mutations.to_json(mutations.changed_document(json.loads(good[8 : 8 + size]), chance), chance)
            return len(head).to_bytes(8, "little") + head + good[8 + size :]
        return mutations.changed_bytes(good[: 8 + size], chance) + good[8 + size :]

    def attempt(self, data: bytes) -> str:
        from vggdeploy.model.weights import load_model

        self.write(f"checkpoint/{WEIGHTS_NAME}", data)
        about = {**self._about, "weights_sha256": hashlib.sha256(data).hexdigest()}
        self.write(f"checkpoint/{CHECKPOINT_NAME}", json.dumps(about).encode())
        load_model(self.work / "checkpoint")
        return "accepted"


class FaultTarget(Target):
    """No parser: every third kind of harm in turn, which the runner has to tell apart."""

    name = "faults"
    harms: ClassVar = ("refused", "accepted", "crash", "hang", "traceback", "memory", "memory", "crash", "accepted")

    def good(self) -> bytes:
        return b"1"

    def input(self, number: int, seed: int) -> bytes:
        return str(number).encode()

    def attempt(self, data: bytes) -> str:
        match int(data):
            case 0:
                raise ParityError("refused")
            case 2:
                os.abort()
            case 3:
                time.sleep(900)
            case 4:
                return str({}["missing"])
            case 5:
                bytearray(2**30)[::4096] = b"x" * 2**18
            case 6:
                bytearray(2**40)
            case 7:
                os._exit(3)
        return "accepted"


class PuzzleTarget(Target):
    """A fault behind four comparisons, which chance does not pass: that a search is led by coverage shows here."""

    name = "puzzle"
    answer = b"vgg1"

    def good(self) -> bytes:
        return b"a"

    def attempt(self, data: bytes) -> str:
        from fuzz.puzzle import follow

        return follow(data, self.answer)
