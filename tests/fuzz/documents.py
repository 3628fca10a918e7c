"""Targets that are JSON or TOML: what a bundle, a checkpoint, a result, a recipe and a policy say."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from typing import Any, ClassVar

import msgspec

from fuzz import mutations
from fuzz.seeds import linked
from fuzz.target import Target
from vggdeploy.bundle import MANIFEST_NAME, Bundle, Manifest
from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, Checkpoint, read_checkpoint
from vggdeploy.bundle.manifest import UNSEALED
from vggdeploy.bundle.trust import Trust, read_policy, signer_rules
from vggdeploy.bundle.variant import Variant
from vggdeploy.errors import ParityError
from vggdeploy.system.sealed import HashedFile


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

    def changed(self, chance: random.Random) -> bytes:
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

    def changed(self, chance: random.Random) -> bytes:
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
        with HashedFile.of(
            self.write("model.engine", mutations.changed_bytes(head + bytes(4056), chance))
        ).open() as file:
            preflight.check_engine(variant, file)
        return "accepted"


class ReportTarget(Target):
    """A result of a verb, read and drawn as a report in each format, and compared with itself."""

    name, suffix = "report", "json"

    def prepare(self) -> None:
        from fuzz.results import results

        self._results = results()

    def good(self) -> bytes:
        return msgspec.json.encode(self._results[0])

    def changed(self, chance: random.Random) -> bytes:
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
            compare_files([file], [file])
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

    def changed(self, chance: random.Random) -> bytes:
        if chance.random() < 0.2:
            return mutations.changed_bytes(self.good(), chance)
        return mutations.to_json(mutations.document_of(json.loads(self.good()), self._kind, chance), chance)

    def attempt(self, data: bytes) -> str:
        from vggdeploy.search.state import SearchState

        (self.work / "out.search").mkdir(exist_ok=True)
        self.write("out.search/search.json", data)
        state = SearchState.begin(self.work / "out", self._progress.question, resume=True, overwrite=False)
        _ = state.holds
        state.claim.close()
        return "accepted"
