"""Where a program says that its image lies: code that is compiled of it reads memory there, whatever array comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from networks import CASES
from test_exported_files import ASSERTION, FOREIGN, GRAPH, Change, check, edited, graph, tensor

from vggdeploy.errors import BundleError


def image(document: Any) -> Any:
    return graph(document)["tensor_values"]["image"]


def four_bytes_for_one(document: Any) -> None:
    """Nothing in the graph asserts the type any more."""
    image(document)["dtype"] = 7
    graph(document)["nodes"] = [
        node
        for node in graph(document)["nodes"]
        if not (node["target"].endswith(ASSERTION) and node["inputs"][0]["arg"] == tensor("image"))
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
