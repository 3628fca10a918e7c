"""Every parser that reads what may come from anyone, each with good inputs, mutations of them, and a public way in.

`TARGETS` has them by name. `LIBRARIES` are those whose content goes on to a library (ONNX, TorchScript, safetensors).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
import zlib
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from fuzz import mutations
from fuzz.seeds import ENGINE, linked

from vggdeploy.bundle import MANIFEST_NAME, Bundle, Manifest, update_bundle
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, Checkpoint, read_checkpoint
from vggdeploy.bundle.manifest import UNSEALED
from vggdeploy.bundle.trust import Trust, read_policy, signer_rules
from vggdeploy.bundle.variant import Variant
from vggdeploy.errors import ParityError

CORPUS = Path(__file__).parent / "corpus"


class Target:
    """A parser. ``kind`` is the type of its documents, None where only bytes are changed."""

    name: ClassVar[str]
    kind: ClassVar[type | None] = None
    suffix: ClassVar[str] = "bin"

    def __init__(self, home: Path) -> None:
        self.home = home
        self.work = home / "work" / f"{self.name}-{os.getpid()}"
        self.work.mkdir(parents=True)
        self.corpus = [path.read_bytes() for path in sorted((CORPUS / self.name).glob("*"))]
        self.prepare()

    def prepare(self) -> None:
        """Make what the attempts share."""

    def good(self) -> bytes:
        raise NotImplementedError

    def attempt(self, data: bytes) -> str:
        """Use the input as a user would; the outcome, or the error with which it is refused."""
        raise NotImplementedError

    def input(self, number: int, seed: int) -> bytes:
        """The input of that number: the corpus first, then mutations. The same ones for the same seed."""
        if number < len(self.corpus):
            return self.corpus[number]
        chance = random.Random(f"{self.name} {seed} {number}")
        if self.kind is None or chance.random() < 0.2:
            return mutations.changed_bytes(chance.choice([self.good(), *self.corpus]), chance)
        return self.document(chance)

    def document(self, chance: random.Random) -> bytes:
        """A document that is changed, or made, where its schema says."""
        assert self.kind is not None
        return mutations.to_json(mutations.document_of(json.loads(self.good()), self.kind, chance), chance)

    def write(self, name: str, data: bytes) -> Path:
        path = self.work / name
        path.unlink(missing_ok=True)  # it may be a link to a good file
        path.write_bytes(data)
        return path


class ManifestTarget(Target):
    """``manifest.json`` with a digest that fits, in a bundle that is opened, listed, and loaded."""

    name, kind, suffix = "manifest", Manifest, "json"

    def prepare(self) -> None:
        from vggdeploy.cli.tables import bundle_table, choice_table, signature_line
        from vggdeploy.engine.selection import select

        linked(self.home / "bundle", self.work / "bundle")
        self._tables = (bundle_table, signature_line)
        self._choice, self._select = choice_table, select

    def good(self) -> bytes:
        return (self.home / "bundle" / MANIFEST_NAME).read_bytes()

    def attempt(self, data: bytes) -> str:
        import vggdeploy
        from vggdeploy.cli import render
        from vggdeploy.engine.selection import choices

        self.write(f"bundle/{MANIFEST_NAME}", sealed(data))
        bundle = Bundle.open(self.work / "bundle")
        for table in self._tables:
            table(bundle)
        self._choice(choices(bundle))
        render.emit_json(bundle.manifest)
        bundle.golden()
        bundle.stress()
        try:
            with vggdeploy.load(self.work / "bundle", verify="always") as engine:
                engine.bundle.manifest.limits(engine.variant.precision)
        except ParityError:
            return "refuted"
        return "accepted"


def sealed(data: bytes) -> bytes:
    """The bytes with the digest that they would have."""
    import re

    pattern = re.compile(rb'("digest"\s*:\s*")[^"]*(")')
    blank = pattern.sub(rb"\g<1>" + UNSEALED.encode() + rb"\2", data, count=1)
    digest = hashlib.sha256(blank).hexdigest().encode()
    return pattern.sub(rb"\g<1>" + digest + rb"\2", blank, count=1)


class CheckpointTarget(Target):
    """``checkpoint.json`` beside good weights, read, described and loaded."""

    name, kind, suffix = "checkpoint", Checkpoint, "json"

    def prepare(self) -> None:
        linked(self.home / "checkpoint", self.work / "checkpoint")

    def good(self) -> bytes:
        return (self.home / "checkpoint" / CHECKPOINT_NAME).read_bytes()

    def attempt(self, data: bytes) -> str:
        from vggdeploy.cli.tables import steps_table
        from vggdeploy.model.weights import load_model

        self.write(f"checkpoint/{CHECKPOINT_NAME}", data)
        steps_table(read_checkpoint(self.work / "checkpoint"))
        load_model(self.work / "checkpoint")
        return "accepted"


class RecipeTarget(Target):
    """A recipe in TOML."""

    name, suffix = "recipe", "toml"

    def prepare(self) -> None:
        from vggdeploy.train.recipe import Recipe

        self._kind = Recipe

    def good(self) -> bytes:
        from vggdeploy.train.recipe import Recipe
        from vggdeploy.train.recipe_file import to_toml

        return to_toml(Recipe()).encode()

    def input(self, number: int, seed: int) -> bytes:
        if number < len(self.corpus):
            return self.corpus[number]
        chance = random.Random(f"{self.name} {seed} {number}")
        if chance.random() < 0.2:
            return mutations.changed_bytes(self.good(), chance)
        import tomllib

        good = tomllib.loads(self.good().decode())
        return mutations.to_toml(mutations.document_of(good, self._kind, chance), chance)

    def attempt(self, data: bytes) -> str:
        from vggdeploy.train.recipe_file import resolve_recipe, to_toml

        chance = random.Random(data)
        changes: dict[str, Any] = chance.choice(({}, {"arch": "vgg16"}, {"arch": "init"}, {"blocks": "1x8,1x8"}))
        to_toml(resolve_recipe(str(self.write("recipe.toml", data)), changes))
        return "accepted"


class PolicyTarget(Target):
    """A policy file in TOML."""

    name, suffix = "policy", "toml"
    good_document: ClassVar[dict[str, Any]] = {"schema_version": 1, "trusted_keys": ["release.pub"]}

    def good(self) -> bytes:
        return b'schema_version = 1\ntrusted_keys = ["release.pub"]\n'

    def input(self, number: int, seed: int) -> bytes:
        if number < len(self.corpus):
            return self.corpus[number]
        chance = random.Random(f"{self.name} {seed} {number}")
        if chance.random() < 0.4:
            return mutations.changed_bytes(self.good(), chance)
        return mutations.to_toml(mutations.changed_document(self.good_document, chance), chance)

    def attempt(self, data: bytes) -> str:
        read_policy(self.write("policy.toml", data))
        return "accepted"


class SignatureTarget(Target):
    """``model.sig`` of a signed bundle: unless it is the good one, nothing may open."""

    name, suffix = "signature", "json"
    kind = dict

    def prepare(self) -> None:
        linked(self.home / "signed", self.work / "bundle")
        self._trust = signer_rules(Trust([self.home / "release.pub"]))

    def good(self) -> bytes:
        return (self.home / "signed" / "model.sig").read_bytes()

    def document(self, chance: random.Random) -> bytes:
        document = json.loads(self.good())
        if chance.random() < 0.5:  # what is signed is JSON inside base64
            import base64

            envelope = document["dsseEnvelope"]
            inside = json.loads(base64.b64decode(envelope["payload"]))
            changed = mutations.to_json(mutations.changed_document(inside, chance), chance)
            envelope["payload"] = base64.b64encode(changed).decode()
            return json.dumps(document).encode()
        return mutations.to_json(mutations.changed_document(document, chance), chance)

    def attempt(self, data: bytes) -> str:
        self.write("bundle/model.sig", data)
        Bundle.open(self.work / "bundle", only=(), trust=self._trust)
        return "accepted"


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


class EngineTarget(Target):
    """An engine's record, and the first bytes of a file: what is decided before the library sees it."""

    name, kind, suffix = "engine", Variant, "json"
    _good: ClassVar[dict[str, Any]] = {
        "name": "tensorrt-rtx-fp16", "format": "tensorrt-rtx", "precision": "fp16", "path": "model.engine",
        "batch": {"min": 1, "opt": 8, "max": 32},
        "build": {
            "library": "tensorrt_rtx", "version": "1.7.1.116", "source": "model.onnx", "source_sha256": "0" * 64,
            "targets": ["sm89"], "options": {"precision": "fp16"}, "seconds": 1.0, "gpu": "", "driver": "13.0",
        },
    }  # fmt: skip

    def good(self) -> bytes:
        return json.dumps(self._good).encode()

    def attempt(self, data: bytes) -> str:
        from vggdeploy.records import from_json
        from vggdeploy.runtime import preflight
        from vggdeploy.runtime.gpu.cuda import Gpu
        from vggdeploy.types import Device

        variant = from_json(data, Variant, what="the record")
        for host in (
            preflight.Host(None, None),
            preflight.Host("1.7.1.116", Gpu(0, "NVIDIA GeForce RTX 4090", "sm89", "13.0")),
            preflight.host_of(variant, Device("cuda")),
        ):
            preflight.mismatch(variant, host)
        chance = random.Random(data)
        head = preflight._RTX_HEADER.pack(b"vtrt", 2, 4096, 1, 7, 1, 116, b"vtrt", 8)
        preflight.check_file(variant, self.write("model.engine", mutations.changed_bytes(head + bytes(4056), chance)))
        return "accepted"


class ReportTarget(Target):
    """A result of a verb, read and drawn as a report in each format, and compared with itself."""

    name, suffix = "report", "json"

    def prepare(self) -> None:
        from fuzz.results import results

        self._results = results()

    def good(self) -> bytes:
        return msgspec.json.encode(self._results[0])

    def input(self, number: int, seed: int) -> bytes:
        if number < len(self.corpus):
            return self.corpus[number]
        chance = random.Random(f"{self.name} {seed} {number}")
        result = chance.choice(self._results)
        if chance.random() < 0.15:
            return mutations.changed_bytes(msgspec.json.encode(result), chance)
        return mutations.to_json(mutations.document_of(mutations.builtins(result), type(result), chance), chance)

    def attempt(self, data: bytes) -> str:
        from vggdeploy.bench.compare import compare_files
        from vggdeploy.report.write import write_report

        file = self.write("result.json", data)
        for suffix in ("md", "csv", *(["html"] if zlib.crc32(data) % 10 == 0 else [])):
            write_report([file], self.work / f"report.{suffix}")
        if b'"rows"' in data and b'"baseline"' in data:
            compare_files(file, file)
        return "accepted"


class SearchTarget(Target):
    """``search.json``, which ``--resume`` goes on with."""

    name, suffix = "search", "json"

    def prepare(self) -> None:
        from fuzz.results import progress

        from vggdeploy.search.state import SearchProgress

        self._progress, self._kind = progress(), SearchProgress
        (self.work / "out.search").mkdir()

    def good(self) -> bytes:
        return msgspec.json.encode(self._progress)

    def input(self, number: int, seed: int) -> bytes:
        if number < len(self.corpus):
            return self.corpus[number]
        chance = random.Random(f"{self.name} {seed} {number}")
        if chance.random() < 0.2:
            return mutations.changed_bytes(self.good(), chance)
        return mutations.to_json(mutations.document_of(json.loads(self.good()), self._kind, chance), chance)

    def attempt(self, data: bytes) -> str:
        from vggdeploy.search.state import SearchState

        (self.work / "out.search").mkdir(exist_ok=True)
        self.write("out.search/search.json", data)
        state = SearchState.begin(self.work / "out", self._progress.question, resume=True, overwrite=False)
        _ = state.holds
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

        read_array(self.write("array.npy", data), self._manifest.outputs[0])
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

    def input(self, number: int, seed: int) -> bytes:
        if number < len(self.corpus):
            return self.corpus[number]
        chance = random.Random(f"{self.name} {seed} {number}")
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

    def input(self, number: int, seed: int) -> bytes:
        if number < len(self.corpus):
            return self.corpus[number]
        chance = random.Random(f"{self.name} {seed} {number}")
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

    def input(self, number: int, seed: int) -> bytes:
        if number < len(self.corpus):
            return self.corpus[number]
        chance = random.Random(f"{self.name} {seed} {number}")
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
                bytearray(2 * 2**30)[::4096] = b"x" * (2**19)
            case 6:
                bytearray(2**40)
            case 7:
                os._exit(3)
        return "accepted"


OURS: dict[str, type[Target]] = {
    t.name: t
    for t in (
        ManifestTarget, CheckpointTarget, RecipeTarget, PolicyTarget, SignatureTarget, KeyTarget, EngineTarget, ReportTarget,
        SearchTarget, ArrayTarget, ImageTarget, WeightsTarget, EngineFileTarget,
    )
}  # fmt: skip
LIBRARIES: dict[str, type[Target]] = {t.name: t for t in (OnnxTarget, TorchScriptTarget, SafetensorsTarget)}
TARGETS = {**OURS, **LIBRARIES, FaultTarget.name: FaultTarget}
