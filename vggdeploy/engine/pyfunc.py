"""What MLflow imports to open a bundle: its ``loader_module``. Nothing of MLflow is needed here, and no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggdeploy.engine.engine import Engine, load
from vggdeploy.errors import InputError


class PyFunc:
    """An engine as ``mlflow.pyfunc`` asks it: arrays by name in, arrays by name out."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._input = engine.bundle.manifest.input

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> dict[str, NDArray[Any]]:
        """Every output of ``{"image": array}``, or of the array alone.

        Raises:
            InputError: something else, or values that the input's type does not hold.
        """
        found = model_input
        if isinstance(model_input, Mapping):
            if set(model_input) != {self._input.name}:
                raise InputError(f"the inputs are named {sorted(map(str, model_input))[:5]}", f"give {self._input}")
            found = model_input[self._input.name]
        given = np.asarray(found)
        numbers = given.dtype.kind in "uif"
        with np.errstate(invalid="ignore"):  # what does not fit is another value behind it, and is refused
            array = given.astype(self._input.dtype, copy=False) if numbers else given
        if not numbers or not np.array_equal(array, given):
            raise InputError(f"values of {given.dtype} are no {self._input.dtype}", f"give {self._input}")
        return self.engine.run({self._input.name: array})


def _load_pyfunc(path: str) -> PyFunc:
    """MLflow's name of the function. The bundle's hashes, and a signature where the policy asks for one, are checked."""
    return PyFunc(load(path))
