"""What a program says that becomes code: compiled, it reads memory where the image is said to be; written, it has its names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from exported_edits import Change, edited, graph, node, tensor
from networks import CASES
from test_exported_files import ASSERTION, FOREIGN, GRAPH, check

from vggdeploy.errors import BundleError


def image(document: Any) -> Any:
    return graph(document)["tensor_values"]["image"]


def four_bytes_for_one(document: Any) -> None:
    """Nothing in the graph asserts the type any more."""
    image(document)["dtype"] = 7
    graph(document)["nodes"] = [
        each
        for each in graph(document)["nodes"]
        if not (each["target"].endswith(ASSERTION) and each["inputs"][0]["arg"] == tensor("image"))
    ]


PLACES: dict[str, Change] = {
    "numbers of four bytes": four_bytes_for_one,
    "rows far behind the image": lambda document: image(document)["strides"].__setitem__(1, {"as_int": 2**36}),
    "one image for all": lambda document: image(document)["strides"].__setitem__(0, {"as_int": 0}),
    "images as far apart as there are": lambda document: image(document)["strides"].__setitem__(
        0, image(document)["sizes"][0]
    ),
    "columns before rows": lambda document: image(document)["strides"].reverse(),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["small", "vgg19 of normalised images"])
def test_an_image_that_would_be_read_elsewhere_is_refused(name: str, place: str, tmp_path: Path) -> None:
    case = CASES[name]
    if case.dtype != "uint8" and place == "numbers of four bytes":
        pytest.skip("its images are of four bytes")
    made = edited(case.program(tmp_path / "model.pt2"), GRAPH, PLACES[place])
    with pytest.raises(BundleError, match=FOREIGN):
        check(made, case)


def test_a_value_named_as_the_module_is_in_its_own_code_is_refused(tmp_path: Path) -> None:
    """PyTorch writes ``self = torch.ops…`` then, and the next line that means the module fails."""

    def renamed(document: Any) -> None:
        old = node(document, "relu_.default")["name"]
        found = json.loads(json.dumps(document).replace(f'"{old}"', '"self"'))
        document.clear()
        document.update(found)

    made = edited(CASES["small"].program(tmp_path / "model.pt2"), GRAPH, renamed)
    with pytest.raises(BundleError, match="a value named 'self'"):
        check(made)
