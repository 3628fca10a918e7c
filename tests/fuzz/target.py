"""A parser under attack: its good inputs, their mutations, and the public way in."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import ClassVar

from fuzz import mutations

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
        return self.changed(random.Random(f"{self.name} {seed} {number}"))

    def changed(self, chance: random.Random) -> bytes:
        """A mutation of what is good: of its bytes, or of the document."""
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
